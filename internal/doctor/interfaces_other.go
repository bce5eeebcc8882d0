//go:build !linux

package doctor

import "errors"

// openFeatures isn't called: other systems' network cards aren't asked.
func openFeatures() (featureAsker, error) { return nil, errors.ErrUnsupported }
