package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/schollz/progressbar/v3"
	"golang.org/x/term"
	"k8s.io/utils/clock"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/api/v1alpha1"
)

const (
	pollSoon     = 20 * time.Millisecond  // after the first look: most things are done at once
	pollInterval = 500 * time.Millisecond // between looks in the long run
	lineInterval = 5 * time.Second        // between lines where there is no terminal
)

// progress is how far a copy is, in numbers and in words.
type progress struct {
	what, state, message string
	percent              int32
	doneBytes            int64
	totalBytes           int64 // 0: the source does not tell
	bytesPerSecond       int64
	secondsLeft          int64
	virtualBytes         int64
	ready                bool
	failure              error // final
}

func progressOf(c *v1alpha1.BackingImageCopy) progress {
	s := c.Status
	return progress{
		state: string(cmp.Or(s.State, v1alpha1.CopyPending)), message: s.Message, percent: s.Progress,
		doneBytes: s.BytesDone, totalBytes: s.BytesTotal, bytesPerSecond: s.BytesPerSecond, secondsLeft: s.ETASeconds,
		virtualBytes: s.VirtualSize, ready: s.State == v1alpha1.CopyReady,
	}
}

// numbers is like "43 % of 2.1 GiB, 210 MiB/s, 6 s left".
func (p progress) numbers() string {
	var parts []string
	switch {
	case p.ready:
		return ""
	case p.totalBytes > 0:
		parts = append(parts, fmt.Sprintf("%d %% of %s", p.doneBytes*100/p.totalBytes, sizeText(p.totalBytes)))
	case p.doneBytes > 0:
		parts = append(parts, sizeText(p.doneBytes))
	}
	return strings.Join(append(parts, p.speed()...), ", ")
}

// speed is the rate and the time left, as far as they are known.
func (p progress) speed() []string {
	if p.state != string(v1alpha1.CopyInProgress) || p.bytesPerSecond == 0 {
		return nil
	}
	parts := []string{sizeText(p.bytesPerSecond) + "/s"}
	if p.secondsLeft > 0 {
		parts = append(parts, (time.Duration(p.secondsLeft)*time.Second).String()+" left")
	}
	return parts
}

// sentence is the state with what is known beside it.
func (p progress) sentence() string {
	switch {
	case p.numbers() != "":
		return cmp.Or(p.message, p.state) + ", " + p.numbers()
	case p.message != "":
		return p.state + ": " + p.message
	}
	return p.state
}

// meter shows progress on stderr: a bar where that is a terminal, else a line now and then.
type meter struct {
	w        io.Writer
	terminal bool
	clock    clock.PassiveClock
	bar      *progressbar.ProgressBar
	lastLine time.Time
	lastText string
}

func (c *cli) newMeter() *meter {
	f, ok := c.err.(*os.File)
	return &meter{w: c.err, terminal: ok && term.IsTerminal(int(f.Fd())), clock: c.clock}
}

// show shows p; where bytes are counted, as a bar.
func (m *meter) show(p progress) {
	if p.ready {
		return
	}
	if !m.terminal || p.totalBytes == 0 || p.state != string(v1alpha1.CopyInProgress) {
		m.say(p.what + ": " + p.sentence())
		return
	}
	if m.bar == nil {
		m.clearLine()
		m.bar = newBar(m.w, p.totalBytes)
	}
	if m.bar.GetMax64() != p.totalBytes {
		m.bar.ChangeMax64(p.totalBytes)
	}
	m.bar.Describe(p.barText())
	_ = m.bar.Set64(min(p.doneBytes, p.totalBytes-1)) // a bar that cannot be drawn must not end the wait; nor is the last byte the end of it
}

// barText is like "image fedora-42: 0.9 GiB of 2.1 GiB, 210 MiB/s, 6s left".
func (p progress) barText() string {
	text := fmt.Sprintf("%s: %s of %s", p.what, sizeText(p.doneBytes), sizeText(p.totalBytes))
	return strings.Join(append([]string{text}, p.speed()...), ", ")
}

func newBar(w io.Writer, total int64) *progressbar.ProgressBar {
	return progressbar.NewOptions64(total,
		progressbar.OptionSetWriter(w),
		progressbar.OptionSetPredictTime(false),
		progressbar.OptionSetElapsedTime(false),
		progressbar.OptionSetWidth(30),
		progressbar.OptionShowDescriptionAtLineEnd(),
		progressbar.OptionClearOnFinish(),
		progressbar.OptionSetRenderBlankState(false),
	)
}

// say shows a sentence: over the last one on a terminal, else as a line, at most one each lineInterval.
func (m *meter) say(text string) {
	text = strings.TrimSpace(oneLine(text))
	m.closeBar()
	if m.terminal {
		m.clearLine()
		fmt.Fprint(m.w, fitting(text, m.width()))
		m.lastText = text
		return
	}
	now := m.clock.Now()
	if text == m.lastText || now.Sub(m.lastLine) < lineInterval {
		return
	}
	m.lastLine, m.lastText = now, text
	fmt.Fprintln(m.w, text)
}

// end leaves the terminal's line empty for what comes next.
func (m *meter) end() {
	m.closeBar()
	if m.terminal {
		m.clearLine()
	}
}

func (m *meter) closeBar() {
	if m.bar != nil {
		_ = m.bar.Clear() // see show
		m.bar = nil
	}
}

func (m *meter) clearLine() { fmt.Fprint(m.w, "\r\x1b[K") }

func (m *meter) width() int {
	if f, ok := m.w.(*os.File); ok {
		if width, _, err := term.GetSize(int(f.Fd())); err == nil && width > 0 {
			return width
		}
	}
	return 80
}

// fitting cuts text so that it stays on one line of a terminal.
func fitting(text string, width int) string {
	runes := []rune(text)
	if len(runes) < width {
		return text
	}
	return string(runes[:max(width-2, 0)]) + "…"
}

// poll calls done at once and then again and again, more and more rarely, until it reports true or fails for good; ctx ends
// it.
func poll(ctx context.Context, done func(context.Context) (bool, error)) error {
	for delay := pollSoon; ; delay = min(2*delay, pollInterval) {
		ok, err := done(ctx)
		if ok || err != nil && !waits(err) {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(delay):
		}
	}
}

// waits reports whether an error says that the same call may succeed later, as when a server is being restarted.
func waits(err error) bool {
	return backingimage.Is(err, backingimage.NotReady) || backingimage.Is(err, backingimage.Busy)
}

// timedOut turns the end of a command's own time into NotReady with what it was waiting for.
func timedOut(err error, timeout time.Duration, format string, args ...any) error {
	if errors.Is(err, context.DeadlineExceeded) {
		return backingimage.Errorf(backingimage.NotReady, "after %s: %s", timeout, strings.TrimSuffix(fmt.Sprintf(format, args...), ": "))
	}
	return err
}
