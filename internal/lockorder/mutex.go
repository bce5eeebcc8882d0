//go:build !ktlsdebug

package lockorder

import "sync"

// Mutex is a sync.Mutex of rank R.
type Mutex[R Rank] struct{ sync.Mutex }
