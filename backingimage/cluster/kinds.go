package cluster

import (
	"context"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/client-go/rest"
)

// Storage has the clients of the kinds by which a cluster's users come by volumes.
type Storage struct {
	Claims  In[*corev1.PersistentVolumeClaim, *corev1.PersistentVolumeClaimList]
	Volumes In[*corev1.PersistentVolume, *corev1.PersistentVolumeList]
	Classes In[*storagev1.StorageClass, *storagev1.StorageClassList]
	Events  In[*corev1.Event, *corev1.EventList]
	cfg     *rest.Config
}

// NewStorage makes the clients. It does not connect.
func NewStorage(cfg *rest.Config) (s *Storage, err error) {
	s = &Storage{cfg: cfg}
	if s.Claims, err = NewClaimsClient(cfg); err != nil {
		return nil, err
	}
	if s.Volumes, err = NewVolumesClient(cfg); err != nil {
		return nil, err
	}
	if s.Classes, err = NewClassesClient(cfg); err != nil {
		return nil, err
	}
	s.Events, err = NewEventsClient(cfg)
	return s, err
}

// WaitServed reports whether the API has claims, and waits while it does not say; an error is ctx's.
func (s *Storage) WaitServed(ctx context.Context) (bool, error) {
	return WaitServes(ctx, s.cfg, "persistentvolumeclaims")
}

// NewClaimsClient makes the client of PersistentVolumeClaims.
func NewClaimsClient(cfg *rest.Config) (In[*corev1.PersistentVolumeClaim, *corev1.PersistentVolumeClaimList], error) {
	return Resource(cfg, corev1.SchemeGroupVersion, "persistentvolumeclaims",
		func() *corev1.PersistentVolumeClaim { return &corev1.PersistentVolumeClaim{} },
		func() *corev1.PersistentVolumeClaimList { return &corev1.PersistentVolumeClaimList{} })
}

// NewVolumesClient makes the client of PersistentVolumes.
func NewVolumesClient(cfg *rest.Config) (In[*corev1.PersistentVolume, *corev1.PersistentVolumeList], error) {
	return Resource(cfg, corev1.SchemeGroupVersion, "persistentvolumes",
		func() *corev1.PersistentVolume { return &corev1.PersistentVolume{} },
		func() *corev1.PersistentVolumeList { return &corev1.PersistentVolumeList{} })
}

// NewClassesClient makes the client of StorageClasses.
func NewClassesClient(cfg *rest.Config) (In[*storagev1.StorageClass, *storagev1.StorageClassList], error) {
	return Resource(cfg, storagev1.SchemeGroupVersion, "storageclasses",
		func() *storagev1.StorageClass { return &storagev1.StorageClass{} },
		func() *storagev1.StorageClassList { return &storagev1.StorageClassList{} })
}

// NewEventsClient makes the client of Events.
func NewEventsClient(cfg *rest.Config) (In[*corev1.Event, *corev1.EventList], error) {
	return Resource(cfg, corev1.SchemeGroupVersion, "events",
		func() *corev1.Event { return &corev1.Event{} }, func() *corev1.EventList { return &corev1.EventList{} })
}
