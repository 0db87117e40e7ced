package nft

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"sigs.k8s.io/knftables"
)

// Table is one nftables table. All methods may be called concurrently; each
// blocks while the nft program runs.
type Table struct {
	nft    knftables.Interface
	log    *slog.Logger
	direct func() *batch // a new batch for the kernel; nil: all goes through the nft program
	guard  *Guard        // that knows the writes for ours; nil: none

	mu       sync.Mutex
	sections map[string]State // what is wanted
	known    bool             // it is in the kernel; false: read the kernel before the next change
	pending  map[string]bool  // sections that nobody has set yet
	dropped  map[string]bool  // names that a section had and has no more, while others are pending
	stale    []string         // emptied chains that wait to be deleted
	warned   time.Time        // when it was last said that somebody else has changed the table
}

// warnPause is how often a program that goes on changing the table is told of.
const warnPause = time.Minute

// New returns the table that nft stands for. It does nothing yet. Until each of
// the sections has been set once, what is in the kernel and belongs to none that was
// set is left alone: it may be of one that is still to come.
func New(nft knftables.Interface, log *slog.Logger, sections ...string) *Table {
	t := &Table{nft: nft, log: log, sections: map[string]State{}, pending: map[string]bool{}, dropped: map[string]bool{}}
	for _, name := range sections {
		t.pending[name] = true
	}
	return t
}

// Open returns the table of that family and name in the network namespace of the calls; see
// [New]. The nft program must be there. Small changes are given to the kernel without it.
func Open(family knftables.Family, name string, log *slog.Logger, sections ...string) (*Table, error) {
	kernel, err := knftables.New(family, name)
	if err != nil {
		return nil, err
	}
	t := New(kernel, log, sections...)
	t.direct = func() *batch { return newBatch(family, name) }
	return t, nil
}

// Set makes state the content of a section and brings the kernel to it, in one
// transaction: either all of it is there or nothing changed. Only what differs is
// written, and only this section is looked at. state is the table's from then on: the caller
// must not change it, nor read it once it calls [Table.Patch].
//
// On error the wanted state is kept, and the next Set, Patch or [Table.Verify] compares all of
// it with the kernel; a [Guard] does so soon.
func (t *Table) Set(ctx context.Context, section string, state State) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	was := t.sections[section]
	t.sections[section] = state
	delete(t.pending, section)
	return t.change(ctx, was, state)
}

// Patch changes a section that was set, as [Table.Set] with the whole section would. It looks
// at nothing but what the patch names, however large the section is. What is in the patch is
// the table's from then on.
func (t *Table) Patch(ctx context.Context, section string, patch Patch) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	state, ok := t.sections[section]
	if !ok {
		return fmt.Errorf("nftables section %q cannot be patched: it was not set", section)
	}
	was := state.named(patch)
	state.Apply(patch)
	return t.change(ctx, was, state.named(patch))
}

// change brings the kernel to what is wanted, which was was and is is in some part, and is as
// it was in all others.
func (t *Table) change(ctx context.Context, was, is State) error {
	if t.known {
		return t.write(ctx, was, is)
	}
	drop(t.dropped, was.Chains, is.Chains)
	drop(t.dropped, was.Sets, is.Sets)
	return t.sync(ctx)
}

// sync reads what is in the kernel, and brings it to what is wanted.
func (t *Table) sync(ctx context.Context) error {
	want := merge(t.sections)
	have, err := read(ctx, t.nft, want)
	if err != nil {
		t.guard.failed()
		return fmt.Errorf("read nftables table: %w", err)
	}
	t.stale = nil
	if len(t.pending) > 0 {
		keepOthers(have.Chains, want.Chains, t.dropped)
		keepOthers(have.Sets, want.Sets, t.dropped)
	}
	return t.write(ctx, have, want)
}

// write brings the kernel from have to want, which are the whole table or, if that is known,
// the same part of it.
func (t *Table) write(ctx context.Context, have, want State) error {
	return t.guard.write(func() error { return t.writeNow(ctx, have, want) })
}

func (t *Table) writeNow(ctx context.Context, have, want State) error {
	there := t.known || len(have.Chains)+len(have.Sets) > 0
	// A chain that comes back before it was deleted is already there, empty.
	stale, done, err := t.writeDirect(have, want, there)
	if err != nil {
		t.unknown()
		return fmt.Errorf("write nftables table: %w", err)
	}
	if !done {
		tx := t.nft.NewTransaction()
		if !there {
			tx.Add(&knftables.Table{})
		}
		stale = diff(program{tx}, have, want)
		if tx.NumOperations() > 0 {
			if err := t.nft.Run(ctx, tx); err != nil {
				t.unknown() // somebody else may have changed the table
				return fmt.Errorf("write nftables table (%d operations): %w", tx.NumOperations(), err)
			}
			t.log.Debug("nftables written", "operations", tx.NumOperations())
		}
	}
	t.stale = slices.DeleteFunc(append(stale, t.stale...), t.wanted)
	// What others will want could not be compared yet.
	if t.known = len(t.pending) == 0; t.known {
		clear(t.dropped)
	}
	return nil
}

// unknown makes the next change read the kernel, which finds what is to be swept as well.
func (t *Table) unknown() { t.known, t.stale = false, nil }

// writeDirect gives the change to the kernel, if it is one that can be given without the
// nft program; done is false if the program has to write it. With an error it is not known
// what there is now. there tells whether the table is.
func (t *Table) writeDirect(have, want State, there bool) (stale []string, done bool, err error) {
	if t.direct == nil || !there {
		return nil, false, nil
	}
	b := t.direct()
	stale = diff(b, have, want)
	if b.unable {
		return nil, false, nil
	}
	if err := b.send(); errors.As(err, &refusal{}) {
		t.log.Debug("the kernel did not take a change, trying it by the nft program", "error", err)
		return nil, false, nil
	} else if err != nil {
		return nil, false, err
	}
	if steps := b.messages - 1; steps > 0 { // without those that begin and end it
		t.log.Debug("nftables written", "messages", steps-1)
	}
	return stale, true, nil
}

// wanted tells whether a section has the chain.
func (t *Table) wanted(chain string) bool {
	for _, s := range t.sections {
		if _, ok := s.Chains[chain]; ok {
			return true
		}
	}
	return false
}

func drop[V any](dropped map[string]bool, was, is map[string]V) {
	for name := range was {
		if _, ok := is[name]; !ok {
			dropped[name] = true
		}
	}
}

func keepOthers[V any](have, want map[string]V, dropped map[string]bool) {
	for name, v := range have {
		if _, ok := want[name]; !ok && !dropped[name] {
			want[name] = v
		}
	}
}

// merge makes one state of several. The merged maps are new, the chains are shared.
func merge(sections map[string]State) State {
	s := NewState()
	for _, section := range sections {
		maps.Copy(s.Chains, section.Chains)
		maps.Copy(s.Sets, section.Sets)
	}
	return s
}

// Sweep deletes chains that earlier changes emptied. It is called some time
// after them, because older kernels take a moment to let go; what is still in use
// is tried again by the next Sweep. It tells whether nothing is left to do.
func (t *Table) Sweep(ctx context.Context) (done bool, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.stale) == 0 {
		return true, nil
	}
	err = t.guard.write(func() error {
		done, err = t.sweep(ctx)
		return err
	})
	return done, err
}

func (t *Table) sweep(ctx context.Context) (done bool, err error) {
	slices.Sort(t.stale)
	t.stale = slices.Compact(t.stale)
	if t.direct != nil {
		b := t.direct()
		for _, name := range t.stale {
			b.deleteChain(name)
		}
		if !b.unable {
			err := b.send()
			if err == nil {
				t.stale = nil
				return true, nil
			}
			if !errors.As(err, &refusal{}) {
				t.unknown()
				return false, fmt.Errorf("delete unused nftables chains: %w", err)
			}
		}
	}
	// Who has deleted one before, and was told that it failed, would fail for ever.
	there, err := t.nft.List(ctx, "chains")
	if err != nil {
		return false, fmt.Errorf("list nftables chains: %w", err)
	}
	t.stale = slices.DeleteFunc(t.stale, func(name string) bool { return !slices.Contains(there, name) })
	tx := t.nft.NewTransaction()
	for _, name := range t.stale {
		tx.Delete(&knftables.Chain{Name: name})
	}
	if err := t.nft.Run(ctx, tx); err != nil {
		return false, fmt.Errorf("delete unused nftables chains: %w", err)
	}
	t.stale = nil
	return true, nil
}

// Verify checks that the table in the kernel still has what was written (the chains with their
// number of rules and the hash that comes with them, the sets with their elements), and writes again
// what is not: somebody may have flushed it. What others have added beside is left alone. It tells
// whether somebody else has changed a table of [Open] since it was last written.
func (t *Table) Verify(ctx context.Context) (changed bool, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.known {
		if t.direct != nil {
			same, err := t.direct().has(merge(t.sections))
			if err != nil {
				return false, fmt.Errorf("list nftables table: %w", err)
			}
			if same {
				return false, nil
			}
			changed = true
			if time.Since(t.warned) >= warnPause {
				t.log.Warn("nftables table was changed by somebody else, writing it again")
				t.warned = time.Now()
			}
		}
		t.unknown()
	}
	return changed, t.sync(ctx)
}

// Delete removes the table and forgets every section. Idempotent.
func (t *Table) Delete(ctx context.Context) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	tx := t.nft.NewTransaction()
	tx.Add(&knftables.Table{}) // makes the deletion idempotent
	tx.Delete(&knftables.Table{})
	if err := t.guard.write(func() error { return t.nft.Run(ctx, tx) }); err != nil {
		return fmt.Errorf("delete nftables table: %w", err)
	}
	t.sections, t.known, t.stale = map[string]State{}, false, nil
	return nil
}
