//go:build !linux

package caddyktls

import "os"

func isDirect(*os.File) bool { return true }
