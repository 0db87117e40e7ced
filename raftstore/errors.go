package raftstore

import (
	"errors"
	"fmt"
)

// ErrUncertain says that a transaction may or may not have happened: it was
// handed over, and its outcome did not come back. Whoever can, reads with
// [Store.Sync] and sees; conditions make repeating it safe.
var ErrUncertain = errors.New("the write may or may not have happened")

// UncertainError is an [ErrUncertain] with its cause.
type UncertainError struct{ Cause error }

func (e *UncertainError) Error() string { return fmt.Sprintf("%v: %v", ErrUncertain, e.Cause) }

// Is makes errors.Is find [ErrUncertain]. The cause is not unwrapped: a
// [NoQuorumError] in it would say that nothing happened.
func (e *UncertainError) Is(target error) bool { return target == ErrUncertain }

// DamagedError says that a file of the store is not what was written to it.
type DamagedError struct {
	Path  string
	Cause error
}

func (e *DamagedError) Error() string {
	return fmt.Sprintf("%s is damaged (%v); this peer's copy of the state cannot be used. "+
		"Remove this peer from the cluster on another peer, move the directory away and join again: "+
		"the state then comes from the others", e.Path, e.Cause)
}

func (e *DamagedError) Unwrap() error { return e.Cause }

// errNotProposed says that a transaction surely did not happen and will not: it
// may be proposed again.
var errNotProposed = errors.New("not proposed")
