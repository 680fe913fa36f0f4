package doctor

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"

	"plinth.dev/plinth/backingimage/api/v1alpha1"
	"plinth.dev/plinth/provisioner"
)

func (x *examination) kubernetes() {
	if x.Kubernetes == nil {
		return
	}
	for _, what := range slices.Sorted(maps.Keys(x.Kubernetes.Unread)) {
		x.find(Note, what, "", "Unread", "could not be read: "+x.Kubernetes.Unread[what], "run this with an account that may list them")
	}
	x.driver()
	for _, c := range x.Kubernetes.Classes {
		if c.Provisioner == x.Driver {
			x.class(c)
		}
	}
	for _, c := range x.Kubernetes.Claims {
		if class := x.classOf(c); class != nil && c.Status.Phase == corev1.ClaimPending {
			x.claim(c, class)
		}
	}
}

func (x *examination) driver() {
	const kind = "CSIDriver"
	d := x.Kubernetes.Driver
	if _, unread := x.Kubernetes.Unread[kind]; unread {
		return
	}
	if d == nil {
		x.find(Error, kind, x.Driver, "Missing", "the cluster has no CSIDriver of that name, so that pods wait for an attachment that nobody makes", "apply deploy/kubernetes, or install the chart")
		return
	}
	anew := "delete the CSIDriver and apply deploy/kubernetes again; volumes in use do not notice"
	if d.Spec.AttachRequired == nil || *d.Spec.AttachRequired {
		x.find(Error, kind, d.Name, "AttachRequired", "attachRequired is not false, and nothing attaches Plinth's volumes", anew)
	}
	if d.Spec.StorageCapacity == nil || !*d.Spec.StorageCapacity {
		x.find(Warning, kind, d.Name, "NoStorageCapacity", "storageCapacity is not true: the scheduler does not know where there is room, and tries nodes that have none", "set spec.storageCapacity to true, and run csi-provisioner with --enable-capacity")
	}
}

func (x *examination) class(c *storagev1.StorageClass) {
	const kind = "StorageClass"
	const anew = "a class cannot be changed: delete it and create it anew, which changes nothing of existing volumes"
	p, err := provisioner.ParseParameters(provisioner.DriverParameters(c.Parameters))
	if err != nil {
		x.find(Error, kind, c.Name, "InvalidParameters", err.Error(), anew)
		return
	}
	if p.Image == "" {
		return
	}
	image := x.imageNamed(p.Image)
	if image == nil {
		if p.SourceType == "" {
			x.find(Error, kind, c.Name, "NoImage", fmt.Sprintf("there is no backing image %q, and the class does not say where it comes from", p.Image), "create the image")
		}
		return
	}
	if differs := provisioner.Differences(p, image); len(differs) > 0 {
		x.find(Error, kind, c.Name, "ImageDiffers", fmt.Sprintf("backing image %s is not what the class describes: %s", image.Name, strings.Join(differs, "; ")), "name another image; "+anew)
	}
}

func (x *examination) imageNamed(name string) *v1alpha1.BackingImage {
	if i := slices.IndexFunc(x.Images, func(i *v1alpha1.BackingImage) bool { return i.Name == name }); i >= 0 {
		return x.Images[i]
	}
	return nil
}

// classOf is the class of a claim if it is one of ours.
func (x *examination) classOf(c *corev1.PersistentVolumeClaim) *storagev1.StorageClass {
	if c.Spec.StorageClassName == nil {
		return nil
	}
	i := slices.IndexFunc(x.Kubernetes.Classes, func(s *storagev1.StorageClass) bool {
		return s.Name == *c.Spec.StorageClassName && s.Provisioner == x.Driver
	})
	if i < 0 {
		return nil
	}
	return x.Kubernetes.Classes[i]
}

const annotationSelectedNode = "volume.kubernetes.io/selected-node"

// claim looks at one that has no volume yet.
func (x *examination) claim(c *corev1.PersistentVolumeClaim, class *storagev1.StorageClass) {
	find := func(severity Severity, problem, message, remedy string) {
		x.findings = append(x.findings, Finding{severity, "PersistentVolumeClaim", c.Namespace, c.Name, problem, message, remedy})
	}
	if problem, message, remedy := x.override(c, class); problem != "" {
		find(Error, problem, message, remedy)
		return
	}
	late := class.VolumeBindingMode != nil && *class.VolumeBindingMode == storagev1.VolumeBindingWaitForFirstConsumer
	switch {
	case late && c.Annotations[annotationSelectedNode] == "":
		if x.longAgo(c.CreationTimestamp) {
			find(Note, "WaitsForPod", "waits for a pod that uses it, and that the scheduler finds a node for", "start one; if there is one: kubectl describe pod")
		}
	case x.longAgo(c.CreationTimestamp):
		find(Warning, "Pending", "has no volume yet", fmt.Sprintf("kubectl describe pvc -n %s %s says what was answered last; if it has no event, see that csi-provisioner runs", c.Namespace, c.Name))
	}
}

// override says what is wrong with a claim's wish for an image.
func (x *examination) override(c *corev1.PersistentVolumeClaim, class *storagev1.StorageClass) (problem, message, remedy string) {
	name, by, twice := provisioner.AskedImage(c)
	if twice != nil {
		return "TwoImages", twice.Error(), "remove the annotation"
	}
	p, err := provisioner.ParseParameters(provisioner.DriverParameters(class.Parameters))
	if name == "" || err != nil || name == p.Image {
		return "", "", ""
	}
	image := x.imageNamed(name)
	switch {
	case !p.AllowOverride:
		return "OverrideNotAllowed", fmt.Sprintf("asks for image %s by its %s, and class %s does not let it", name, by, class.Name), "use a class with allowBackingImageOverride, or leave that out of the claim"
	case image == nil:
		return "NoImage", fmt.Sprintf("asks for image %s, and there is none of that name", name), "create the image, or correct the annotation"
	case !image.Spec.Allows(c.Namespace):
		return "NamespaceNotAllowed", fmt.Sprintf("may not use image %s", name), fmt.Sprintf("add namespace %s to the image's spec.allowedNamespaces", c.Namespace)
	}
	return "", "", ""
}
