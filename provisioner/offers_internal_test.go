package provisioner

import (
	"context"
	"errors"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/clock"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/api/v1alpha1"
)

func TestOffers(t *testing.T) {
	s := &v1alpha1.Snapshot{ObjectMeta: metav1.ObjectMeta{Name: "s", UID: "1"}}
	t.Run("a fault while one is made is its error", func(t *testing.T) {
		var none *Engines
		if _, err := NewOffers("n", none, clock.RealClock{}).Share(t.Context(), s); !backingimage.Is(err, backingimage.Internal) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("they end with the agent", func(t *testing.T) {
		o := NewOffers("n", nil, clock.RealClock{})
		for range offerPlaces {
			o.places <- struct{}{}
		}
		f := o.begin(t.Context(), s)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := o.Run(ctx); err != nil {
			t.Fatal(err)
		}
		for _, f := range []*offer{f, o.begin(t.Context(), s)} {
			if <-f.ready; !errors.Is(f.err, context.Canceled) {
				t.Errorf("got %v", f.err)
			}
		}
	})
}
