package embedded

import (
	"runtime"
	"strings"

	"k8s.io/klog/v2"
)

// chatty are the packages whose informational messages tell of their own insides: controllers that start, caches that
// are in sync. They log through klog's global functions, so only the process' logger can leave them out.
var chatty = []string{
	"k8s.io/apiextensions-apiserver/",
	"k8s.io/apiserver/",
	"k8s.io/client-go/tools/cache",
}

// Quiet returns a logger that leaves out what the API server says when nothing is wrong. Errors, messages of other
// packages and messages above V(0) pass. A process that starts a Server gives it to klog.SetLoggerWithOptions, with
// klog.ContextualLogger(true).
func Quiet(logger klog.Logger) klog.Logger {
	return logger.WithSink(quietSink{deeper(logger.GetSink(), 1)}) // quietSink's own frame
}

// quietSink is a log sink in front of another.
type quietSink struct{ klog.LogSink }

func (q quietSink) Info(level int, message string, keysAndValues ...any) {
	if level == 0 && isChatty() {
		return
	}
	q.LogSink.Info(level, message, keysAndValues...)
}

func (q quietSink) Error(err error, message string, keysAndValues ...any) {
	q.LogSink.Error(err, message, keysAndValues...)
}

func (q quietSink) WithValues(keysAndValues ...any) klog.LogSink {
	return quietSink{q.LogSink.WithValues(keysAndValues...)}
}

func (q quietSink) WithName(name string) klog.LogSink { return quietSink{q.LogSink.WithName(name)} }

// WithCallDepth keeps file names and line numbers right in sinks that print them.
func (q quietSink) WithCallDepth(depth int) klog.LogSink { return quietSink{deeper(q.LogSink, depth)} }

func deeper(sink klog.LogSink, depth int) klog.LogSink {
	if s, ok := sink.(interface{ WithCallDepth(int) klog.LogSink }); ok {
		return s.WithCallDepth(depth)
	}
	return sink
}

// isChatty reports whether the innermost caller that is no logging code is in a chatty package.
func isChatty() bool {
	var pcs [16]uintptr
	frames := runtime.CallersFrames(pcs[:runtime.Callers(3, pcs[:])])
	for {
		frame, more := frames.Next()
		if !strings.HasPrefix(frame.Function, "k8s.io/klog/v2") && !strings.HasPrefix(frame.Function, "github.com/go-logr/logr") {
			return hasPrefix(frame.Function, chatty)
		}
		if !more {
			return false
		}
	}
}

func hasPrefix(s string, prefixes []string) bool {
	for _, p := range prefixes {
		if strings.HasPrefix(s, p) {
			return true
		}
	}
	return false
}
