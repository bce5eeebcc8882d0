//go:build race

package ktls

func init() { raceDetector = true }
