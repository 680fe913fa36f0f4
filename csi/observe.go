package csi

import (
	"context"
	"fmt"
	"path"
	"runtime/debug"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"k8s.io/klog/v2"
	"k8s.io/utils/clock"

	"plinth.dev/plinth/backingimage"
)

// observer is the one place where calls are logged and measured.
type observer struct {
	logger    klog.Logger
	clock     clock.PassiveClock
	durations prometheus.ObserverVec // labels method and code; nil: not measured
}

// quiet methods are asked for ever by sidecars and kubelets; only their failures are worth a line.
var quiet = map[string]bool{
	"Probe":                     true,
	"GetPluginInfo":             true,
	"GetPluginCapabilities":     true,
	"ControllerGetCapabilities": true,
	"NodeGetCapabilities":       true,
	"NodeGetInfo":               true,
	"NodeGetVolumeStats":        true,
	"GetCapacity":               true,
}

// observe is the outermost interceptor: nothing leaves it that has no gRPC status.
func (o *observer) observe(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	method := path.Base(info.FullMethod)
	logger := o.logger.WithValues("method", method)
	if subject := subjectOf(req); subject != "" {
		logger = logger.WithValues("subject", subject)
	}
	logPayload(logger, "RPC request", req)
	start := o.clock.Now()
	answer, cause := recovered(klog.NewContext(ctx, logger), req, next)
	took := o.clock.Since(start)
	err := statusOf(cause)
	if o.durations != nil {
		o.durations.WithLabelValues(method, status.Code(err).String()).Observe(took.Seconds())
	}
	logOutcome(logger.WithValues("duration", took.Round(time.Microsecond)), method, status.Code(err), cause)
	if err != nil {
		return nil, err
	}
	logPayload(logger, "RPC answer", answer)
	return answer, nil
}

// recovered makes a panic an Internal error, with the stack in the log.
func recovered(ctx context.Context, req any, next grpc.UnaryHandler) (answer any, err error) {
	defer func() {
		if p := recover(); p != nil {
			klog.FromContext(ctx).Error(fmt.Errorf("panic: %v", p), "RPC panicked", "stack", string(debug.Stack()))
			err = backingimage.Errorf(backingimage.Internal, "a fault of Plinth's own: %v; its log has the details", p)
		}
	}()
	return next(ctx, req)
}

func logOutcome(logger klog.Logger, method string, code codes.Code, cause error) {
	switch {
	case code == codes.Internal || code == codes.DataLoss:
		logger.Error(cause, "RPC failed", "code", code)
	case code != codes.OK:
		logger.Info("RPC refused", "code", code, "reason", cause)
	case quiet[method]:
		logger.V(5).Info("RPC done")
	default:
		logger.V(2).Info("RPC done")
	}
}

func logPayload(logger klog.Logger, what string, payload any) {
	if m, ok := payload.(proto.Message); ok {
		logger.V(5).Info(what, "payload", loggable{m})
	}
}
