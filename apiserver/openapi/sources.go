package openapi

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"fmt"
	"sync"

	openapi_v3 "github.com/google/gnostic-models/openapiv3"
	"google.golang.org/protobuf/proto"
)

// Source describes kinds that are not built in. Its methods may be called concurrently.
type Source interface {
	// Groups is like [Groups]. A hash changes whenever its document does, and is the
	// same on every peer.
	Groups(context.Context) (map[string]string, error)
	// Document builds the document of one of Groups, as JSON. [fs.ErrNotExist] if it has gone.
	Document(ctx context.Context, groupVersion string) ([]byte, error)
	// Swagger has what the source adds to the document of OpenAPI v2. hash "" means nothing, and
	// then build is nil. What is described already is not described anew.
	Swagger(context.Context) (hash string, build func() (definitions, paths map[string]json.RawMessage, err error), err error)
}

// built keeps the documents that were asked for, compressed, one for each name and form.
type built struct {
	building chan struct{} // a token for the one that is built: it takes memory

	mu   sync.Mutex
	docs map[string]builtDocument
}

func newBuilt() built {
	return built{building: make(chan struct{}, 1), docs: map[string]builtDocument{}}
}

type builtDocument struct {
	hash       string
	compressed []byte
}

// find returns the document of that name and hash, if it is there.
func (b *built) find(name, hash string) (compressed []byte, ok bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	d, ok := b.docs[name]
	return d.compressed, ok && d.hash == hash
}

// get returns the document of that name and hash, made by build if it is not there. One
// at a time is built; who has to wait for that waits until ctx ends.
func (b *built) get(ctx context.Context, name, hash string, build func() ([]byte, error)) ([]byte, error) {
	if compressed, ok := b.find(name, hash); ok {
		return compressed, nil
	}
	select {
	case b.building <- struct{}{}:
		defer func() { <-b.building }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if compressed, ok := b.find(name, hash); ok { // by whoever was before
		return compressed, nil
	}
	content, err := build()
	if err != nil {
		return nil, err
	}
	compressed, err := compress(content)
	if err != nil {
		return nil, fmt.Errorf("compress document of %s: %w", name, err)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.docs[name] = builtDocument{hash, compressed}
	return compressed, nil
}

// keep forgets the documents of group versions that are gone.
func (b *built) keep(groups map[string]string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for name := range b.docs {
		if gv, isGroup := groupOf(name); isGroup && groups[gv] == "" {
			delete(b.docs, name)
		}
	}
}

func compress(content []byte) ([]byte, error) {
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	if _, err := z.Write(content); err != nil {
		return nil, err
	}
	if err := z.Close(); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

// toProto turns a document of version 3 into gnostic protobuf.
func toProto(text []byte) ([]byte, error) {
	doc, err := openapi_v3.ParseDocument(text)
	if err != nil {
		return nil, fmt.Errorf("parse document: %w", err)
	}
	return proto.MarshalOptions{Deterministic: true}.Marshal(doc)
}
