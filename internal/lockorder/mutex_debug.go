//go:build ktlsdebug

package lockorder

import (
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
)

// Asserted says whether the order is asserted.
const Asserted = true

// Mutex is a sync.Mutex of rank R, which panics where it is taken out of order.
type Mutex[R Rank] struct{ mu sync.Mutex }

// Lock locks m.
func (m *Mutex[R]) Lock() {
	var r R
	id := goroutine()
	for _, h := range held.of(id) {
		if h.Rank.rank() >= r.rank() {
			panic(fmt.Sprintf("lock order: %T is taken with %T held", r, h.Rank))
		}
	}
	m.mu.Lock()
	held.add(id, holding{m, r})
}

// TryLock tries to lock m. It waits for nobody, and so it may come in any order.
func (m *Mutex[R]) TryLock() bool {
	var r R
	if !m.mu.TryLock() {
		return false
	}
	held.add(goroutine(), holding{m, r})
	return true
}

// Unlock unlocks m. The goroutine must be the one that locked it.
func (m *Mutex[R]) Unlock() {
	var r R
	held.remove(goroutine(), holding{m, r})
	m.mu.Unlock()
}

// holding is a Mutex that is locked, and its rank.
type holding struct {
	lock any
	Rank
}

// held are the locks that each goroutine holds.
var held = table{by: map[string][]holding{}}

type table struct {
	mu sync.Mutex
	by map[string][]holding
}

func (t *table) of(id string) []holding {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.Clone(t.by[id])
}

func (t *table) add(id string, h holding) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.by[id] = append(t.by[id], h)
}

func (t *table) remove(id string, h holding) {
	t.mu.Lock()
	defer t.mu.Unlock()
	i := slices.Index(t.by[id], h)
	if i < 0 {
		panic(fmt.Sprintf("lock order: %T is unlocked by a goroutine that doesn't hold it", h.Rank))
	}
	if t.by[id] = slices.Delete(t.by[id], i, i+1); len(t.by[id]) == 0 {
		delete(t.by, id)
	}
}

// goroutine is what tells this goroutine from others: its number, with which its
// stack begins.
func goroutine() string {
	buf := make([]byte, 64)
	id, _, _ := strings.Cut(strings.TrimPrefix(string(buf[:runtime.Stack(buf, false)]), "goroutine "), " ")
	return id
}
