package kubectl

import (
	"bytes"
	"os"
	"testing"

	"github.com/klauspost/compress/zstd"
)

func TestUnpackReplacesADamagedCopy(t *testing.T) {
	enc, err := zstd.NewWriter(nil, zstd.WithSingleSegment(true)) // with its size, as by the zstd program
	if err != nil {
		t.Fatal(err)
	}
	program := bytes.Repeat([]byte("the program "), 100)
	packed, dir := enc.EncodeAll(program, nil), t.TempDir()
	path, err := unpack(packed, dir)
	if err != nil {
		t.Fatal(err)
	}
	first, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := unpack(packed, dir); err != nil {
		t.Fatal(err)
	}
	if again, _ := os.Stat(path); !os.SameFile(first, again) {
		t.Error("an intact copy was unpacked again")
	}
	if err := os.WriteFile(path, []byte("torn"), 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := unpack(packed, dir); err != nil {
		t.Fatal(err)
	}
	if got, _ := os.ReadFile(path); !bytes.Equal(got, program) {
		t.Errorf("damaged copy was kept: %q", got)
	}
	if _, err := unpack([]byte("not zstd"), dir); err == nil {
		t.Error("damaged archive was accepted")
	}
}
