package cluster

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base32"
	"errors"
	"fmt"
	"log/slog"
	"strings"

	"github.com/rundigitalplatform/rookery/cluster/identity"
)

const (
	tokenVersion    = "rk1"
	tokenIDSize     = 5  // 8 characters: a name, not a secret
	tokenSecretSize = 20 // 160 bits: cannot be guessed, whatever the rate
)

var (
	// ErrTokenMalformed says that the text is no token at all.
	ErrTokenMalformed = errors.New("this is not a join token: it looks like rk1.xxxxxxxx.… in four parts; copy the whole line that " +
		"`rookery token create` printed, or create a new one")
	// ErrTokenUnknown says that there is no such token (any more), or its secret is another.
	ErrTokenUnknown = errors.New("the join token is not known: it was revoked, or never created in this cluster; " +
		"create a new one on any peer with `rookery token create`")
	// ErrTokenExpired says that the token's time is over.
	ErrTokenExpired = errors.New("the join token has expired; create a new one on any peer with `rookery token create`")
	// ErrTokenForeign says that the machine that was asked is of another cluster than the token.
	ErrTokenForeign = errors.New("the join token is of another cluster than the machine that answered; check the host, " +
		"or create a token there with `rookery token create`")
)

// Token is what a joiner needs: it names itself, proves itself by the secret, and pins
// the CA of the cluster, so that the joiner cannot be led into another one.
type Token struct {
	ID     string
	secret string
	Pin    [identity.PinSize]byte
}

// lower-case base32 without padding: no character that a shell or a human trips over.
func tokenEncoding() *base32.Encoding {
	return base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)
}

func newToken(pin [identity.PinSize]byte) (Token, error) {
	b := make([]byte, tokenIDSize+tokenSecretSize)
	if _, err := rand.Read(b); err != nil {
		return Token{}, fmt.Errorf("make a token: %w", err)
	}
	enc := tokenEncoding()
	return Token{ID: enc.EncodeToString(b[:tokenIDSize]), secret: enc.EncodeToString(b[tokenIDSize:]), Pin: pin}, nil
}

// String is the token as it is pasted: rk1.ID.SECRET.PIN. It is a secret.
func (t Token) String() string {
	return strings.Join([]string{tokenVersion, t.ID, t.secret, tokenEncoding().EncodeToString(t.Pin[:])}, ".")
}

// LogValue keeps the secret out of logs.
func (t Token) LogValue() slog.Value { return slog.StringValue(tokenVersion + "." + t.ID) }

// ParseToken reads what [Token.String] wrote; [ErrTokenMalformed].
func ParseToken(s string) (Token, error) {
	parts := strings.Split(strings.TrimSpace(s), ".")
	if len(parts) != 4 || parts[0] != tokenVersion {
		return Token{}, ErrTokenMalformed
	}
	for i, size := range []int{tokenIDSize, tokenSecretSize, identity.PinSize} {
		b, err := tokenEncoding().DecodeString(parts[i+1])
		if err != nil || len(b) != size {
			return Token{}, ErrTokenMalformed
		}
	}
	pin, _ := tokenEncoding().DecodeString(parts[3]) // decoded once already
	return Token{ID: parts[1], secret: parts[2], Pin: [identity.PinSize]byte(pin)}, nil
}

// hash is all that the store keeps of the secret. A plain hash does: 160 random
// bits cannot be found by trying, as a password could.
func (t Token) hash() [sha256.Size]byte {
	return sha256.Sum256([]byte(tokenVersion + "." + t.ID + "." + t.secret))
}
