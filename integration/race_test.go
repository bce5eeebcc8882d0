//go:build linux && race

package integration

func init() { raceDetector = true }
