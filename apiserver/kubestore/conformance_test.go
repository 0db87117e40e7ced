package kubestore

import (
	"context"
	"go/ast"
	"go/parser"
	"go/token"
	"os/exec"
	"path/filepath"
	"sort"
	"strings"
	"testing"

	"k8s.io/apiserver/pkg/storage"
	storagetesting "k8s.io/apiserver/pkg/storage/testing"
	"k8s.io/apiserver/pkg/storage/value/encrypt/identity"

	"github.com/rundigitalplatform/rookery/raftstore"
)

// plainTests need nothing but a storage.
func plainTests() map[string]func(context.Context, *testing.T, storage.Interface) {
	return map[string]func(context.Context, *testing.T, storage.Interface){
		"CreateWithTTL":                             storagetesting.RunTestCreateWithTTL,
		"CreateWithKeyExist":                        storagetesting.RunTestCreateWithKeyExist,
		"Get":                                       storagetesting.RunTestGet,
		"UnconditionalDelete":                       storagetesting.RunTestUnconditionalDelete,
		"ConditionalDelete":                         storagetesting.RunTestConditionalDelete,
		"DeleteWithSuggestion":                      storagetesting.RunTestDeleteWithSuggestion,
		"DeleteWithSuggestionAndConflict":           storagetesting.RunTestDeleteWithSuggestionAndConflict,
		"DeleteWithConflict":                        storagetesting.RunTestDeleteWithConflict,
		"DeleteWithSuggestionOfDeletedObject":       storagetesting.RunTestDeleteWithSuggestionOfDeletedObject,
		"ValidateDeletionWithSuggestion":            storagetesting.RunTestValidateDeletionWithSuggestion,
		"ValidateDeletionWithOnlySuggestionValid":   storagetesting.RunTestValidateDeletionWithOnlySuggestionValid,
		"PreconditionalDeleteWithSuggestion":        storagetesting.RunTestPreconditionalDeleteWithSuggestion,
		"PreconditionalDeleteWithOnlySuggestion":    storagetesting.RunTestPreconditionalDeleteWithOnlySuggestionPass,
		"GetListRecursivePrefix":                    storagetesting.RunTestGetListRecursivePrefix,
		"GuaranteedUpdateWithTTL":                   storagetesting.RunTestGuaranteedUpdateWithTTL,
		"GuaranteedUpdateWithConflict":              storagetesting.RunTestGuaranteedUpdateWithConflict,
		"GuaranteedUpdateWithSuggestionAndConflict": storagetesting.RunTestGuaranteedUpdateWithSuggestionAndConflict,
		"ListPaging":                                storagetesting.RunTestListPaging,
		"NamespaceScopedList":                       storagetesting.RunTestNamespaceScopedList,
		"KeySchema":                                 storagetesting.RunTestKeySchema,
		"Watch":                                     storagetesting.RunTestWatch,
		"DeleteTriggerWatch":                        storagetesting.RunTestDeleteTriggerWatch,
		"WatchFromNonZero":                          storagetesting.RunTestWatchFromNonZero,
		"DelayedWatchDelivery":                      storagetesting.RunTestDelayedWatchDelivery,
		"WatchContextCancel":                        storagetesting.RunTestWatchContextCancel,
		"WatcherTimeout":                            storagetesting.RunTestWatcherTimeout,
		"WatchDeleteEventObjectHasLatestRV":         storagetesting.RunTestWatchDeleteEventObjectHaveLatestRV,
		"WatchInitializationSignal":                 storagetesting.RunTestWatchInitializationSignal,
		"ClusterScopedWatch":                        storagetesting.RunTestClusterScopedWatch,
		"NamespaceScopedWatch":                      storagetesting.RunTestNamespaceScopedWatch,
		"WatchBookmarksWithCorrectRV":               storagetesting.RunTestOptionalWatchBookmarksWithCorrectResourceVersion,
		"SendInitialEventsCompatibility":            storagetesting.RunSendInitialEventsBackwardCompatibility,
		"WatchSemantics":                            storagetesting.RunWatchSemantics,
		"WatchSemanticInitialEvents":                storagetesting.RunWatchSemanticInitialEventsExtended,
		"WatchListMatchSingle":                      storagetesting.RunWatchListMatchSingle,
	}
}

// furtherTests look at what is stored, move the revision, or break something.
func furtherTests() map[string]func(*testing.T, *harness) {
	return map[string]func(*testing.T, *harness){
		"Create": func(t *testing.T, h *harness) { storagetesting.RunTestCreate(h.ctx, t, h, h.stored) },
		"List":   func(t *testing.T, h *harness) { storagetesting.RunTestList(h.ctx, t, h, h.compact, false, nil) },
		"Consistent": func(t *testing.T, h *harness) {
			storagetesting.RunTestConsistentList(h.ctx, t, h, h.increaseRV, false, true, false)
		},
		"GetListNonRecursive": func(t *testing.T, h *harness) {
			storagetesting.RunTestGetListNonRecursive(h.ctx, t, h.increaseRV, h)
		},
		"ListInconsistentContinuation": func(t *testing.T, h *harness) {
			storagetesting.RunTestListInconsistentContinuation(h.ctx, t, h, h.compact)
		},
		"CompactRevision": func(t *testing.T, h *harness) {
			storagetesting.RunTestCompactRevision(h.ctx, t, h, h.increaseRV, h.compact)
		},
		"WatchFromZero": func(t *testing.T, h *harness) { storagetesting.RunTestWatchFromZero(h.ctx, t, h, h.compact) },
		"ProgressNotify": func(t *testing.T, h *harness) {
			storagetesting.RunOptionalTestProgressNotify(h.ctx, t, h, h.increaseRV)
		},
		"WatchDispatchBookmarkEvents": func(t *testing.T, h *harness) {
			storagetesting.RunTestWatchDispatchBookmarkEvents(h.ctx, t, h, true)
		},
		"Stats": func(t *testing.T, h *harness) { h.testStats(t, false) },
		"StatsWithSizes": func(t *testing.T, h *harness) {
			if err := h.EnableResourceSizeEstimation(func(context.Context) ([]string, error) { return nil, nil }); err != nil {
				t.Fatal(err)
			}
			h.testStats(t, true)
		},
		"DeleteUnexpectedlyDecodable": func(t *testing.T, h *harness) {
			allowUnsafeDeletion(t, true)
			storagetesting.RunTestDeleteWithConflictAndMissingExpectedTransformOrDecodeError(h.ctx, t, h, h.codec.fail.Store)
		},
		"DeleteUndecodable": func(t *testing.T, h *harness) {
			allowUnsafeDeletion(t, true)
			storagetesting.RunTestDeleteExpectedTransformOrDecodeError(h.ctx, t, h, h.codec.fail.Store)
		},
		"DeleteDecodableWithSuggestion": func(t *testing.T, h *harness) {
			allowUnsafeDeletion(t, true)
			storagetesting.RunTestDeleteWithSuggestionAndMissingExpectedTransformOrDecodeError(h.ctx, t, h)
		},
	}
}

func (h *harness) testStats(t *testing.T, sizes bool) {
	if h.prefix == nil {
		storagetesting.RunTestStats(h.ctx, t, h, h.codec, identity.NewEncryptCheckTransformer(), sizes)
		return
	}
	storagetesting.RunTestStats(h.ctx, t, h, h.codec, h.prefix, sizes)
}

// transformerTests replace the transformer, so they need one to begin with.
func transformerTests() map[string]func(*testing.T, *harness) {
	return map[string]func(*testing.T, *harness){
		"GuaranteedUpdate": func(t *testing.T, h *harness) { storagetesting.RunTestGuaranteedUpdate(h.ctx, t, h, h.stored) },
		"GuaranteedUpdateChecksStoredData": func(t *testing.T, h *harness) {
			storagetesting.RunTestGuaranteedUpdateChecksStoredData(h.ctx, t, h)
		},
		"TransformationFailure":    func(t *testing.T, h *harness) { storagetesting.RunTestTransformationFailure(h.ctx, t, h) },
		"ListResourceVersionMatch": func(t *testing.T, h *harness) { storagetesting.RunTestListResourceVersionMatch(h.ctx, t, h) },
		"ListContinuation":         func(t *testing.T, h *harness) { storagetesting.RunTestListContinuation(h.ctx, t, h, h.pages) },
		"ListPaginationRareObject": func(t *testing.T, h *harness) { storagetesting.RunTestListPaginationRareObject(h.ctx, t, h, h.pages) },
		"ListContinuationWithFilter": func(t *testing.T, h *harness) {
			storagetesting.RunTestListContinuationWithFilter(h.ctx, t, h, h.pages)
		},
		"WatchError":              func(t *testing.T, h *harness) { storagetesting.RunTestWatchError(h.ctx, t, h) },
		"WatchErrorBlocksFurther": func(t *testing.T, h *harness) { storagetesting.RunWatchErrorIsBlockingFurtherEvents(h.ctx, t, h) },
		"WatchWithUnsafeDelete": func(t *testing.T, h *harness) {
			allowUnsafeDeletion(t, true)
			storagetesting.RunTestWatchWithUnsafeDelete(h.ctx, t, h, bitsFlipped())
		},
		"GetListWithErrorAggregation": func(t *testing.T, h *harness) {
			allowUnsafeDeletion(t, true)
			storagetesting.RunTestGetListWithErrorAggregation(h.ctx, t, h, bitsFlipped())
		},
		"GetListWithoutErrorAggregation": func(t *testing.T, h *harness) {
			allowUnsafeDeletion(t, false)
			storagetesting.RunTestGetListWithoutErrorAggregation(h.ctx, t, h, bitsFlipped())
		},
		"DeleteUntransformable": func(t *testing.T, h *harness) {
			allowUnsafeDeletion(t, true)
			failing := &failingTransformer{Transformer: h.prefix}
			defer h.setTransformer(failing)()
			storagetesting.RunTestDeleteExpectedTransformOrDecodeError(h.ctx, t, h, failing.fail.Store)
		},
	}
}

// TestConformance runs the whole suite that Kubernetes runs against etcd: as
// stored by default, and with a transformer, that is without shared objects.
func TestConformance(t *testing.T) {
	for name, transformed := range map[string]bool{"plain": false, "transformed": true} {
		t.Run(name, func(t *testing.T) { conform(t, openMemory, transformed) })
	}
}

func conform(t *testing.T, open func(testing.TB) raftstore.Store, transformed bool) {
	for name, test := range plainTests() {
		t.Run(name, func(t *testing.T) {
			h := newHarness(t, open, transformed)
			test(h.ctx, t, h)
		})
	}
	for name, test := range furtherTests() {
		t.Run(name, func(t *testing.T) { test(t, newHarness(t, open, transformed)) })
	}
	if !transformed {
		return
	}
	for name, test := range transformerTests() {
		t.Run(name, func(t *testing.T) { test(t, newHarness(t, open, true)) })
	}
}

// TestConformanceIsComplete fails when the suite has a test that is not called here.
func TestConformanceIsComplete(t *testing.T) {
	dir, err := exec.Command("go", "list", "-f", "{{.Dir}}", "k8s.io/apiserver/pkg/storage/testing").Output()
	if err != nil {
		t.Fatalf("find the suite: %v", err)
	}
	called := map[string]bool{}
	inspect(t, ".", func(n ast.Node) {
		if sel, ok := n.(*ast.SelectorExpr); ok {
			if pkg, ok := sel.X.(*ast.Ident); ok && pkg.Name == "storagetesting" {
				called[sel.Sel.Name] = true
			}
		}
	})
	var offered int
	var missing []string
	inspect(t, strings.TrimSpace(string(dir)), func(n ast.Node) {
		f, ok := n.(*ast.FuncDecl)
		if !ok || f.Recv != nil || !strings.HasPrefix(f.Name.Name, "Run") {
			return
		}
		offered++
		if !called[f.Name.Name] {
			missing = append(missing, f.Name.Name)
		}
	})
	if offered == 0 {
		t.Fatal("the suite was not found")
	}
	sort.Strings(missing)
	for _, name := range missing {
		t.Errorf("%s is not called", name)
	}
}

// inspect calls visit with every node of the Go files in dir.
func inspect(t *testing.T, dir string, visit func(ast.Node)) {
	files, err := filepath.Glob(filepath.Join(dir, "*.go"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range files {
		file, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(file, func(n ast.Node) bool { visit(n); return true })
	}
}
