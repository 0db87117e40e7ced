package main

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// lifetime is a flag's duration that may be given in days: 30d, 12h, 1h30m.
type lifetime time.Duration

// Set implements pflag.Value.
func (l *lifetime) Set(text string) error {
	d, err := time.ParseDuration(text)
	if days, ok := strings.CutSuffix(text, "d"); ok {
		var n uint64
		n, err = strconv.ParseUint(days, 10, 16) // at most 179 years: it fits
		d = time.Duration(n) * 24 * time.Hour
	}
	if err != nil || d <= 0 {
		return fmt.Errorf("%q is not a time to live such as 30d, 12h or 1h30m", text)
	}
	*l = lifetime(d)
	return nil
}

// String implements pflag.Value.
func (l *lifetime) String() string {
	d := time.Duration(*l)
	if day := 24 * time.Hour; d > 0 && d%day == 0 {
		return fmt.Sprintf("%dd", d/day)
	}
	return d.String()
}

// Type implements pflag.Value.
func (l *lifetime) Type() string { return "duration" }
