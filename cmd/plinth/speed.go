package main

import "time"

const (
	barInterval = 200 * time.Millisecond // between two changes of a bar
	speedWindow = 10 * time.Second       // that a rate is over
)

// speed measures bytes per second over the last seconds.
type speed struct{ seen []seen }

type seen struct {
	at    time.Time
	bytes int64
}

// observe notes how many bytes are done by now and returns the rate, 0 while it is too early to tell.
func (s *speed) observe(now time.Time, bytes int64) int64 {
	if n := len(s.seen); n > 0 && bytes < s.seen[n-1].bytes { // it went back to resume
		s.seen = nil
	}
	s.seen = append(s.seen, seen{now, bytes})
	for len(s.seen) > 2 && now.Sub(s.seen[0].at) > speedWindow {
		s.seen = s.seen[1:]
	}
	seconds := now.Sub(s.seen[0].at).Seconds()
	if seconds < 1 {
		return 0
	}
	return int64(float64(bytes-s.seen[0].bytes) / seconds)
}
