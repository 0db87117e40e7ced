package apiserver

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	ktypes "k8s.io/apimachinery/pkg/types"
)

// maxPatchWork bounds a merge patch: its bytes times its levels. The library that
// merges reads what is nested once for every level above it, so that 40 kB of nothing
// but brackets would keep a core busy for a minute and take gigabytes. The largest
// object, 3 MiB, may have 21 levels; one of 100 kB has room for 600.
const maxPatchWork = 64 << 20

// withPatchCheck refuses patches with which the libraries that apply them do not cope.
func (s *Server) withPatchCheck(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		check := patchCheck(r)
		if check == nil {
			h.ServeHTTP(w, r)
			return
		}
		body, err := io.ReadAll(r.Body)
		var tooLarge *http.MaxBytesError
		switch {
		case errors.As(err, &tooLarge): // what was read is too much for the handlers too, and they say so
		case err != nil:
			s.fail(w, r, apierrors.NewBadRequest(fmt.Sprintf("read patch: %v", err)))
			return
		}
		if err := check(body); err != nil {
			s.fail(w, r, apierrors.NewBadRequest(err.Error()))
			return
		}
		r.Body = io.NopCloser(bytes.NewReader(body))
		h.ServeHTTP(w, r)
	})
}

// patchCheck is what looks at the body of a request; nil: nothing has to.
func patchCheck(r *http.Request) func([]byte) error {
	if r.Method != http.MethodPatch {
		return nil
	}
	kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	switch {
	case err != nil: // the handlers say what is wrong
		return nil
	case kind == string(ktypes.MergePatchType):
		return checkMergePatch
	case kind == string(ktypes.JSONPatchType):
		return checkJSONPatch
	}
	return nil
}

func checkMergePatch(body []byte) error {
	if levels := depth(body); levels*len(body) > maxPatchWork {
		return fmt.Errorf("a merge patch of %d bytes may not be nested %d levels deep: send a smaller one, or a JSON patch", len(body), levels)
	}
	return nil
}

// checkJSONPatch finds the replacement of a whole object by nothing, at which the library
// that applies it panics.
func checkJSONPatch(body []byte) error {
	var operations []map[string]*json.RawMessage
	if json.Unmarshal(body, &operations) != nil {
		return nil // the handlers say what is wrong
	}
	is := func(raw *json.RawMessage, want string) bool {
		var s string
		return raw != nil && json.Unmarshal(*raw, &s) == nil && s == want
	}
	for i, op := range operations {
		if _, ok := op["value"]; !ok && is(op["op"], "replace") && is(op["path"], "") {
			return fmt.Errorf("operation %d of the JSON patch replaces the whole object and has no value", i)
		}
	}
	return nil
}

// depth is how deep a JSON text is nested. It does not matter what it says of one that is
// not well formed, as long as it is not less than a parser would find before it stops.
func depth(text []byte) int {
	level, most := 0, 0
	inString, escaped := false, false
	for _, c := range text {
		switch {
		case escaped:
			escaped = false
		case inString:
			escaped, inString = c == '\\', c != '"'
		case c == '"':
			inString = true
		case c == '{' || c == '[':
			level++
			most = max(most, level)
		case c == '}' || c == ']':
			level--
		}
	}
	return most
}
