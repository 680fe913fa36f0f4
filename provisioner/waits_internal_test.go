package provisioner

import (
	"testing"

	"plinth.dev/plinth/backingimage/api/v1alpha1"
)

func TestWhatAnImageAddsToItsCopy(t *testing.T) {
	copyHere := &v1alpha1.BackingImageCopy{Status: v1alpha1.BackingImageCopyStatus{State: v1alpha1.CopyPending, Message: "waits for the first"}}
	for name, tc := range map[string]struct {
		status v1alpha1.BackingImageStatus
		says   string
	}{
		"nothing, when nobody looked at it":    {},
		"nothing, when it is there":            {status: v1alpha1.BackingImageStatus{State: v1alpha1.CopyReady, Progress: 100}},
		"nothing, when that copy speaks in it": {status: v1alpha1.BackingImageStatus{State: v1alpha1.CopyPending, Message: "waits for the first"}},
		"how far it is":                        {status: v1alpha1.BackingImageStatus{State: v1alpha1.CopyInProgress, Progress: 43, Message: "downloading"}, says: "; the image is in-progress, 43 %: downloading"},
		"why it fails":                         {status: v1alpha1.BackingImageStatus{State: v1alpha1.CopyFailed, Message: "404 Not Found"}, says: "; the image is failed: 404 Not Found"},
		"that it waits":                        {status: v1alpha1.BackingImageStatus{State: v1alpha1.CopyPending}, says: "; the image is pending"},
	} {
		t.Run(name, func(t *testing.T) {
			if got := imageSays(&v1alpha1.BackingImage{Status: tc.status}, copyHere); got != tc.says {
				t.Errorf("says %q, want %q", got, tc.says)
			}
		})
	}
}
