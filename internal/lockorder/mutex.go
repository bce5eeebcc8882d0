//go:build !ktlsdebug

package lockorder

import "sync"

// Asserted says whether the order is asserted.
const Asserted = false

// Mutex is a sync.Mutex of rank R.
type Mutex[R Rank] struct{ sync.Mutex }
