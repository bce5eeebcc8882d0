//go:build linux && race

package ktls

func init() { raceDetector = true }
