package provisioner

import (
	"testing"
	"time"
)

func TestWhatIsWorthTelling(t *testing.T) {
	waiting := func(message string) tale { return tale{reason: reasonWaiting, message: message, progress: true} }
	failing := tale{reason: reasonImageFailing, message: "404", warning: true, progress: true}
	ready, ill := tale{reason: reasonReady, message: "ready"}, tale{reason: reasonIll, message: "its disk is gone", warning: true}
	for name, tc := range map[string]struct {
		news, before   tale
		age, sinceTold time.Duration
		wait           time.Duration // negative: never
	}{
		"a wait that has just begun may soon be over": {news: waiting("1 %"), age: time.Second, wait: time.Second},
		"a wait that takes longer is told":            {news: waiting("1 %"), age: 3 * time.Second},
		"a failure is not told before that either":    {news: failing, age: 0, wait: waitsQuietly},
		"how far it is, is told from time to time":    {news: waiting("2 %"), before: waiting("1 %"), sinceTold: 4 * time.Second, wait: 6 * time.Second},
		"and then again":                                   {news: waiting("2 %"), before: waiting("1 %"), sinceTold: time.Minute},
		"nothing new":                                      {news: waiting("1 %"), before: waiting("1 %"), sinceTold: time.Hour, wait: -1},
		"a failure is told at once":                        {news: failing, before: waiting("1 %")},
		"what was waited for":                              {news: ready, before: waiting("99 %")},
		"what was ready at once needs no telling":          {news: ready, wait: -1},
		"what becomes ill is told though nothing was ever": {news: ill},
		"and that it is well again":                        {news: ready, before: ill},
		"nothing is never told":                            {wait: -1},
	} {
		t.Run(name, func(t *testing.T) {
			now := time.Now()
			got := worth(tc.news, told{tc.before, now.Add(-tc.sinceTold)}, now, now.Add(-tc.age))
			if got != tc.wait && (got >= 0 || tc.wait >= 0) {
				t.Errorf("got %s, want %s", got, tc.wait)
			}
		})
	}
}
