package csi

import (
	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"
)

// redacted stands in logs for what must not be read there.
const redacted = "***"

// mountFlags may hold secrets according to the specification, which does not mark them as such.
const mountFlags protoreflect.Name = "mount_flags"

// loggable is a message that can be logged: its secrets are replaced when, and only when, it is written.
type loggable struct{ proto.Message }

// String is the message as JSON, without secrets.
func (l loggable) String() string {
	if l.Message == nil {
		return "null"
	}
	m := proto.Clone(l.Message)
	redact(m.ProtoReflect())
	out, err := protojson.Marshal(m)
	if err != nil {
		return err.Error()
	}
	return string(out)
}

// redact replaces every value of every secret field of a message and of the messages in it.
func redact(m protoreflect.Message) {
	m.Range(func(field protoreflect.FieldDescriptor, value protoreflect.Value) bool {
		switch {
		case isSecret(field):
			blank(m, field, value)
		case field.Kind() != protoreflect.MessageKind:
		case field.IsMap():
			if field.MapValue().Kind() == protoreflect.MessageKind {
				value.Map().Range(func(_ protoreflect.MapKey, v protoreflect.Value) bool { redact(v.Message()); return true })
			}
		case field.IsList():
			for i := range value.List().Len() {
				redact(value.List().Get(i).Message())
			}
		default:
			redact(value.Message())
		}
		return true
	})
}

func isSecret(field protoreflect.FieldDescriptor) bool {
	if field.Name() == mountFlags {
		return true
	}
	options, ok := field.Options().(*descriptorpb.FieldOptions)
	return ok && proto.HasExtension(options, csi.E_CsiSecret) && proto.GetExtension(options, csi.E_CsiSecret).(bool)
}

// blank keeps the keys of a map and the length of a list, and of anything else only that it was there.
func blank(m protoreflect.Message, field protoreflect.FieldDescriptor, value protoreflect.Value) {
	mask := protoreflect.ValueOfString(redacted)
	switch {
	case field.IsMap() && field.MapValue().Kind() == protoreflect.StringKind:
		value.Map().Range(func(k protoreflect.MapKey, _ protoreflect.Value) bool { value.Map().Set(k, mask); return true })
	case field.IsList() && field.Kind() == protoreflect.StringKind:
		for i := range value.List().Len() {
			value.List().Set(i, mask)
		}
	case field.Kind() == protoreflect.StringKind && !field.IsMap() && !field.IsList():
		m.Set(field, mask)
	default:
		m.Clear(field)
	}
}
