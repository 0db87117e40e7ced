package main

import (
	"fmt"
	"path/filepath"
	"time"

	"github.com/spf13/pflag"

	"github.com/rundigitalplatform/rookery/node/images"
)

// imageConfig are the settings of images and of the OCI runtimes that run them.
type imageConfig struct {
	images.Policy
	Handlers map[string]string
}

func (c *imageConfig) flags(f *pflag.FlagSet) {
	f.IntVar(&c.MaxPulls, "max-parallel-pulls", 3, "how many images are pulled at the same time; 1: one after the other")
	f.IntVar(&c.High, "image-gc-high", 85, "percent of the disk at which unused images are removed; 100: never")
	f.IntVar(&c.Low, "image-gc-low", 80, "percent of the disk until which they are removed")
	f.DurationVar(&c.MinAge, "image-min-age", 2*time.Minute, "how long an image stays at least after it was pulled or used")
	f.DurationVar(&c.MaxAge, "image-max-age", 0, "how long an image stays that nothing uses, however empty the disk (default: for ever)")
	f.StringSliceVar(&c.Pinned, "pinned-images", nil, "images that are never removed, as they are named in pods or with * for any characters")
	f.StringToStringVar(&c.Handlers, "runtime-handlers", nil, "handlers of RuntimeClasses, HANDLER=SOCKET of a Podman service that was started with that OCI runtime")
}

func (c *imageConfig) validate() error {
	if _, err := c.WithDefaults(); err != nil {
		return err
	}
	for handler, socket := range c.Handlers {
		if !filepath.IsAbs(socket) {
			return fmt.Errorf("--runtime-handlers %s=%s: the socket has to be an absolute path", handler, socket)
		}
	}
	return nil
}
