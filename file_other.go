//go:build !linux

package caddyktls

import (
	"errors"
	"os"
)

func fileSystemOf(*os.File) (uint32, error) { return 0, errors.ErrUnsupported }

func isDirect(*os.File) bool { return true }
