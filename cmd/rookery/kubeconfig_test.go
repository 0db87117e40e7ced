package main

import (
	"slices"
	"strings"
	"testing"
	"time"
)

func TestLifetime(t *testing.T) {
	for text, want := range map[string]time.Duration{"30d": 720 * time.Hour, "12h": 12 * time.Hour, "1h30m": 90 * time.Minute, "1d": 24 * time.Hour} {
		var l lifetime
		if err := l.Set(text); err != nil || time.Duration(l) != want {
			t.Errorf("%s: %v, %v", text, time.Duration(l), err)
		}
		if again := l.String(); again != text && again != want.String() {
			t.Errorf("%s prints as %s", text, again)
		}
	}
	for _, text := range []string{"", "d", "-1d", "0", "0d", "x", "1.5d", "99999999d"} {
		var l lifetime
		if err := l.Set(text); err == nil {
			t.Errorf("%q became %v", text, time.Duration(l))
		}
	}
}

func TestSubjectOfAKubeconfig(t *testing.T) {
	admin := subject{}
	if err := admin.complete(); err != nil || admin.user != "admin" || !slices.Equal(admin.groups, []string{adminGroup}) || admin.hint() != "" {
		t.Errorf("nobody named: %+v, %v", admin, err)
	}
	bob := subject{user: "bob", groups: []string{"developers"}}
	if err := bob.complete(); err != nil || time.Duration(bob.expires) != 365*24*time.Hour || !strings.Contains(bob.hint(), "--group=developers") {
		t.Errorf("bob: %+v, %v, %q", bob, err, bob.hint())
	}
	for _, bad := range []subject{
		{user: "system:node:h1"}, {user: "system:kube-scheduler"}, {groups: []string{"x"}},
		{user: "bob", groups: []string{"system:nodes"}}, {user: "bob", groups: []string{""}},
	} {
		if err := bad.complete(); err == nil {
			t.Errorf("%+v was accepted", bad)
		}
	}
}
