package embedded

import (
	"time"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/registry/generic"
	"k8s.io/apiserver/pkg/registry/generic/registry"
	"k8s.io/apiserver/pkg/storage/storagebackend"
)

// compactEvery is how often the API server drops old revisions from etcd; a revision lives for one to two of it. A
// copy in progress writes its status every other second, so without it etcd grew by a gigabyte in a busy week. Watches are
// served from the API server's memory and do not need the history.
const compactEvery = time.Minute

// storage tells the API server where to keep each resource. It implements generic.RESTOptionsGetter.
type storage struct{ backend storagebackend.Config }

func newStorage(socket string, codec runtime.Codec, compactEvery time.Duration) storage {
	backend := storagebackend.NewDefaultConfig("/registry", codec)
	backend.Transport.ServerList = []string{"unix://" + socket}
	backend.CompactionInterval = compactEvery
	backend.CountMetricPollPeriod = 0
	backend.DBMetricPollInterval = 0
	return storage{backend: *backend}
}

// GetRESTOptions returns the same for each resource but for its key prefix. Garbage collection stays off: nothing
// here would ever remove the finalizers that a foreground deletion sets.
func (s storage) GetRESTOptions(resource schema.GroupResource, _ runtime.Object) (generic.RESTOptions, error) {
	return generic.RESTOptions{
		StorageConfig:           s.backend.ForResource(resource),
		Decorator:               registry.StorageWithCacher(),
		DeleteCollectionWorkers: 1,
		ResourcePrefix:          resource.Group + "/" + resource.Resource,
	}, nil
}
