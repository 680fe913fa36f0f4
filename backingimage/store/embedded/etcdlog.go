package embedded

import (
	"fmt"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"k8s.io/klog/v2"
)

type etcdLogger = *zap.Logger

// newEtcdLogger sends etcd's errors to our log, its warnings there at V(2), and drops the rest. What etcd deems fatal
// (it cannot write its log, say) does not exit the process from within a library: the goroutine ends, which keeps every
// later write from being acknowledged, and died hears of it.
func newEtcdLogger(logger klog.Logger, died func(error)) etcdLogger {
	return zap.New(&etcdCore{logger: logger.WithName("etcd")}, zap.WithFatalHook(fatalHook{died}))
}

// etcdCore is a zapcore.Core that writes to a klog.Logger.
type etcdCore struct {
	logger klog.Logger
	fields []zapcore.Field
}

func (c *etcdCore) Enabled(level zapcore.Level) bool {
	return level >= zapcore.ErrorLevel || level == zapcore.WarnLevel && c.logger.V(2).Enabled()
}

func (c *etcdCore) With(fields []zapcore.Field) zapcore.Core {
	return &etcdCore{logger: c.logger, fields: append(c.fields[:len(c.fields):len(c.fields)], fields...)}
}

func (c *etcdCore) Check(e zapcore.Entry, ce *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if c.Enabled(e.Level) {
		return ce.AddCore(e, c)
	}
	return ce
}

// harmless are errors that etcd logs though nothing is wrong.
var harmless = map[string]bool{
	// On each stop, also a wanted one; Etcd.Err returns the same error where it matters.
	"setting up serving from embedded etcd failed.": true,
	// When its version monitor looks before the first election; it looks again every few seconds.
	"failed to update storage version": true,
}

func (c *etcdCore) Write(e zapcore.Entry, fields []zapcore.Field) error {
	if harmless[e.Message] {
		return nil
	}
	encoder := zapcore.NewMapObjectEncoder()
	for _, f := range append(c.fields[:len(c.fields):len(c.fields)], fields...) {
		f.AddTo(encoder)
	}
	values := make([]any, 0, 2*len(encoder.Fields))
	for key, value := range encoder.Fields {
		values = append(values, key, value)
	}
	if e.Level == zapcore.WarnLevel {
		c.logger.V(2).Info(e.Message, values...)
	} else {
		c.logger.Error(nil, e.Message, values...)
	}
	return nil
}

func (c *etcdCore) Sync() error { return nil }

type fatalHook struct{ died func(error) }

func (h fatalHook) OnWrite(e *zapcore.CheckedEntry, fields []zapcore.Field) {
	encoder := zapcore.NewMapObjectEncoder()
	for _, f := range fields {
		f.AddTo(encoder)
	}
	h.died(fmt.Errorf("etcd cannot go on: %s %v", e.Message, encoder.Fields))
	zapcore.WriteThenGoexit.OnWrite(e, fields)
}
