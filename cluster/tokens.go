package cluster

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/rundigitalplatform/rookery/cluster/identity"
	"github.com/rundigitalplatform/rookery/raftstore"
)

// DefaultTokenTTL is long enough to walk to the next machine and back the next day.
const DefaultTokenTTL = 24 * time.Hour

// tokenGrace is how long an expired token stays in the store, so that whoever
// uses it is told that it has expired rather than that it is not known.
const tokenGrace = 7 * 24 * time.Hour

// TokenInfo is what is known of a token; its secret is not.
type TokenInfo struct {
	ID      string
	Created time.Time
	Expires time.Time
}

type tokenRecord struct {
	Hash    string    `json:"hash"` // hex SHA-256
	Created time.Time `json:"created"`
	Expires time.Time `json:"expires"`
}

// Tokens creates, lists, revokes and verifies the join tokens of one cluster.
type Tokens struct {
	store Store
	pin   [identity.PinSize]byte
	now   func() time.Time
}

// NewTokens returns the tokens in store of the cluster whose CA has this pin.
func NewTokens(store Store, pin [identity.PinSize]byte) *Tokens {
	return &Tokens{store: store, pin: pin, now: time.Now}
}

// Create makes a token that may be used any number of times until ttl is over (0: [DefaultTokenTTL]).
func (t *Tokens) Create(ctx context.Context, ttl time.Duration) (Token, error) {
	if ttl < 0 {
		return Token{}, fmt.Errorf("a token cannot live for %v; give a positive time, for example --expires 1h", ttl)
	}
	if ttl == 0 {
		ttl = DefaultTokenTTL
	}
	tok, err := newToken(t.pin)
	if err != nil {
		return Token{}, err
	}
	now, h := t.now().UTC(), tok.hash()
	value, err := json.Marshal(tokenRecord{Hash: hex.EncodeToString(h[:]), Created: now, Expires: now.Add(ttl)})
	if err != nil {
		return Token{}, fmt.Errorf("encode token: %w", err)
	}
	res, err := t.store.Txn(ctx, raftstore.Txn{{Key: tokensPrefix + tok.ID, Kind: raftstore.Put, Value: value, TTL: ttl + tokenGrace}})
	if err != nil {
		return Token{}, fmt.Errorf("store token: %w", err)
	}
	if !res.Applied {
		return Token{}, fmt.Errorf("store token: the id %s is taken; try again", tok.ID)
	}
	return tok, nil
}

// List returns all tokens by ascending id, expired ones of the last days included.
func (t *Tokens) List() ([]TokenInfo, error) {
	list, err := t.store.List(tokensPrefix, "", 0, 0)
	if err != nil {
		return nil, fmt.Errorf("list tokens: %w", err)
	}
	infos := make([]TokenInfo, 0, len(list.KVs))
	for _, kv := range list.KVs {
		rec, err := decodeToken(kv)
		if err != nil {
			return nil, err
		}
		infos = append(infos, TokenInfo{ID: strings.TrimPrefix(kv.Key, tokensPrefix), Created: rec.Created, Expires: rec.Expires})
	}
	return infos, nil
}

// Revoke makes the token of that id (or the whole token, as it was pasted) useless. [ErrTokenUnknown].
func (t *Tokens) Revoke(ctx context.Context, id string) error {
	if tok, err := ParseToken(id); err == nil {
		id = tok.ID
	}
	if err := t.store.Sync(ctx); err != nil {
		return err
	}
	kv, _ := t.store.Get(tokensPrefix + id)
	if kv == nil {
		return fmt.Errorf("token %q: %w", id, ErrTokenUnknown)
	}
	if _, err := t.store.Txn(ctx, raftstore.Txn{{Key: kv.Key, If: raftstore.Any, Kind: raftstore.Delete}}); err != nil {
		return fmt.Errorf("revoke token: %w", err)
	}
	return nil
}

// Verify returns nil if text is a token of this cluster that is valid now:
// [ErrTokenMalformed], [ErrTokenForeign], [ErrTokenUnknown], [ErrTokenExpired],
// or the store's errors. It reads what all acknowledged writes left, so that a
// revoked token is refused on every peer at once.
func (t *Tokens) Verify(ctx context.Context, text string) error {
	tok, err := ParseToken(text)
	if err != nil {
		return err
	}
	if tok.Pin != t.pin {
		return ErrTokenForeign
	}
	if err := t.store.Sync(ctx); err != nil {
		return err
	}
	kv, _ := t.store.Get(tokensPrefix + tok.ID)
	if kv == nil {
		return ErrTokenUnknown
	}
	rec, err := decodeToken(kv)
	if err != nil {
		return err
	}
	want, err := hex.DecodeString(rec.Hash)
	if err != nil || len(want) != sha256.Size {
		return errors.Join(fmt.Errorf("token %s is damaged in the store; revoke it", tok.ID), err)
	}
	if h := tok.hash(); subtle.ConstantTimeCompare(h[:], want) != 1 {
		return ErrTokenUnknown
	}
	if !t.now().Before(rec.Expires) {
		return ErrTokenExpired
	}
	return nil
}

func decodeToken(kv *raftstore.KV) (tokenRecord, error) {
	var rec tokenRecord
	if err := json.Unmarshal(kv.Value, &rec); err != nil {
		return rec, fmt.Errorf("decode token %s: %w", kv.Key, err)
	}
	return rec, nil
}
