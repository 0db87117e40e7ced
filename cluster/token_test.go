package cluster

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/rundigitalplatform/rookery/cluster/identity"
)

func TestTokens(t *testing.T) {
	ctx := t.Context()
	store := newStore(t)
	now := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	pin := [identity.PinSize]byte{1, 2, 3}
	tokens := NewTokens(store, pin)
	tokens.now = func() time.Time { return now }
	create := func(ttl time.Duration) Token {
		tok, err := tokens.Create(ctx, ttl)
		if err != nil {
			t.Fatal(err)
		}
		return tok
	}
	good, short, revoked := create(0), create(time.Minute), create(time.Hour)
	if err := tokens.Revoke(ctx, revoked.ID); err != nil {
		t.Fatal(err)
	}
	foreign, err := newToken([identity.PinSize]byte{9})
	if err != nil {
		t.Fatal(err)
	}
	forged := good
	forged.secret = short.secret
	now = now.Add(time.Minute)
	for _, tc := range []struct {
		name, token string
		want        error
	}{
		{"good", good.String(), nil},
		{"good with a newline", good.String() + "\n", nil},
		{"expired", short.String(), ErrTokenExpired},
		{"revoked", revoked.String(), ErrTokenUnknown},
		{"secret of another", forged.String(), ErrTokenUnknown},
		{"foreign", foreign.String(), ErrTokenForeign},
		{"empty", "", ErrTokenMalformed},
		{"half", good.String()[:40], ErrTokenMalformed},
		{"kubeadm's", "abcdef.0123456789abcdef", ErrTokenMalformed},
		{"upper case", strings.ToUpper(good.String()), ErrTokenMalformed},
		{"path in the id", "rk1.../../x." + good.secret + ".x", ErrTokenMalformed},
		{"another version", strings.Replace(good.String(), "rk1", "rk2", 1), ErrTokenMalformed},
	} {
		t.Run(tc.name, func(t *testing.T) {
			err := tokens.Verify(ctx, tc.token)
			if !errors.Is(err, tc.want) {
				t.Fatalf("Verify = %v, want %v", err, tc.want)
			}
			if err != nil && !strings.Contains(err.Error(), "rookery token create") {
				t.Errorf("the message lacks the cure: %v", err)
			}
		})
	}
	infos, err := tokens.List()
	if err != nil || len(infos) != 2 {
		t.Errorf("List = %v, %v", infos, err)
	}
	if err := tokens.Revoke(ctx, good.String()); err != nil {
		t.Errorf("Revoke by the whole token: %v", err)
	}
	if err := tokens.Revoke(ctx, "nothere"); !errors.Is(err, ErrTokenUnknown) {
		t.Errorf("Revoke of none: %v", err)
	}
}

func TestTokenSecretIsNotStored(t *testing.T) {
	store := newStore(t)
	tok, err := NewTokens(store, [identity.PinSize]byte{}).Create(t.Context(), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	kv, _ := store.Get(tokensPrefix + tok.ID)
	if kv == nil || strings.Contains(string(kv.Value), tok.secret) {
		t.Error("the store holds the secret")
	}
	if s := tok.LogValue().String(); strings.Contains(s, tok.secret) {
		t.Error("a log would show the secret")
	}
}

func FuzzParseToken(f *testing.F) {
	tok, err := newToken([identity.PinSize]byte{7})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(tok.String())
	f.Fuzz(func(t *testing.T, s string) {
		if tok, err := ParseToken(s); err == nil && tok.String() != strings.TrimSpace(s) {
			// base32 of 20 bytes has no unused bits, of 5 neither: one text, one token
			t.Errorf("%q reads as %q", s, tok.String())
		}
	})
}
