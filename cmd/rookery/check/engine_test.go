package check

import (
	"context"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/rundigitalplatform/rookery/runtime"
)

// held answers a ping, and not what it is.
type held struct {
	runtime.Runtime
	ping error
}

func (h held) Ping(context.Context) error { return h.ping }

func (h held) Info(ctx context.Context) (runtime.Info, error) {
	<-ctx.Done()
	return runtime.Info{}, ctx.Err()
}

// An engine of which one container hangs keeps no peer from starting; one that hangs does.
func TestEngineHeldUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		all := Engine(t.Context(), held{}, "podman.sock", Versions{})
		if FirstFatal(all[:1]) != nil || all[0].Level != Warn || !strings.Contains(all[0].Found, "does not say what it is") || all[0].Cure != Hangs {
			t.Errorf("one container hangs: %+v", all)
		}
		all = Engine(t.Context(), held{ping: context.DeadlineExceeded}, "podman.sock", Versions{})
		if FirstFatal(all) == nil || !strings.Contains(all[0].Found, "does not answer at podman.sock") {
			t.Errorf("all of it hangs: %+v", all)
		}
	})
}
