package inf

import (
	"math"
	"strings"
	"testing"
	"time"
)

// Everything here takes hours or gigabytes upstream, or panics.
func TestBounds(t *testing.T) {
	began := time.Now()
	one := NewDec(1, 0)
	tiny, huge := NewDec(1, math.MaxInt32), NewDec(1, math.MinInt32)
	for _, small := range []*Dec{tiny, NewDec(7, 999_999_999), NewDec(math.MaxInt64, 5000)} {
		if got := new(Dec).Round(small, 9, RoundUp); got.Cmp(NewDec(1, 9)) != 0 {
			t.Errorf("%v rounds up to %v, not 1n", small, got)
		}
		if got := new(Dec).Round(small, 9, RoundDown); got.Sign() != 0 {
			t.Errorf("%v rounds down to %v", small, got)
		}
		if small.Cmp(one) >= 0 || one.Cmp(small) <= 0 || small.Cmp(new(Dec)) <= 0 {
			t.Errorf("%v is not between 0 and 1", small)
		}
	}
	for _, large := range []*Dec{huge, NewDec(1, -999_999_999), NewDec(math.MaxInt64, 9-math.MaxInt32), NewDec(1, 9-math.MaxInt32-1)} {
		if large.Cmp(one) <= 0 || one.Cmp(large) >= 0 || new(Dec).Neg(large).Cmp(one) >= 0 {
			t.Errorf("%v is not greater than 1", large)
		}
		if got := new(Dec).Round(large, 9, RoundUp); got.Cmp(one) <= 0 {
			t.Errorf("%v rounds to %v", large, got)
		}
		if sum := new(Dec).Add(large, one); sum.Cmp(one) <= 0 {
			t.Errorf("%v and 1 are %v", large, sum)
		}
	}
	if s := huge.String(); s != "1e2147483648" {
		t.Error(s)
	}
	if s := tiny.String(); s != "1e-2147483647" {
		t.Error(s)
	}
	if _, ok := new(Dec).SetString(strings.Repeat("1", maxDigits)); !ok {
		t.Error("as many digits as are allowed are refused")
	}
	for _, more := range []string{strings.Repeat("1", maxDigits+1), "-" + strings.Repeat("1", maxDigits+1)} {
		if _, ok := new(Dec).SetString(more); ok {
			t.Error("one digit more than is allowed is taken")
		}
	}
	if _, ok := new(Dec).SetString("1" + strings.Repeat("0", 1<<20)); ok {
		t.Error("a million zeros are taken")
	}
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("took %v", took)
	}
}
