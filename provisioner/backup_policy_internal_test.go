package provisioner

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/robfig/cron/v3"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/api/v1alpha1"
)

func TestExpired(t *testing.T) {
	at := func(text string) time.Time {
		when, err := time.Parse("2006-01-02 15:04", text)
		if err != nil {
			t.Fatal(err)
		}
		return when
	}
	backup := func(when string, state v1alpha1.BackupState) *v1alpha1.Backup {
		taken := metav1.NewMicroTime(at(when))
		return &v1alpha1.Backup{ObjectMeta: metav1.ObjectMeta{Name: when}, Status: v1alpha1.BackupStatus{State: state, TakenTime: &taken}}
	}
	var all []*v1alpha1.Backup
	for day := range 30 { // two a day; 1 November 2026 is a Sunday
		for _, hour := range []string{"02:00", "14:00"} {
			all = append(all, backup(fmt.Sprintf("2026-11-%02d %s", day+1, hour), v1alpha1.BackupReady))
		}
	}
	failedOld, failedNew, running := backup("2026-11-20 03:00", v1alpha1.BackupFailed), backup("2026-11-30 15:00", v1alpha1.BackupFailed), backup("2026-11-30 16:00", v1alpha1.BackupInProgress)
	for name, c := range map[string]struct {
		policy v1alpha1.BackupPolicySpec
		more   []*v1alpha1.Backup
		keeps  []string
	}{
		"nothing to keep keeps all": {policy: v1alpha1.BackupPolicySpec{}, keeps: nil},
		"the last":                  {policy: v1alpha1.BackupPolicySpec{KeepLast: 3}, keeps: []string{"2026-11-29 14:00", "2026-11-30 02:00", "2026-11-30 14:00"}},
		"the last of each day":      {policy: v1alpha1.BackupPolicySpec{KeepDaily: 2}, keeps: []string{"2026-11-29 14:00", "2026-11-30 14:00"}},
		"the last of each week":     {policy: v1alpha1.BackupPolicySpec{KeepWeekly: 3}, keeps: []string{"2026-11-22 14:00", "2026-11-29 14:00", "2026-11-30 14:00"}},
		"of everything a little": {
			policy: v1alpha1.BackupPolicySpec{KeepLast: 2, KeepDaily: 2, KeepWeekly: 2},
			keeps:  []string{"2026-11-29 14:00", "2026-11-30 02:00", "2026-11-30 14:00"},
		},
		"failed ones until a later one is complete": {
			policy: v1alpha1.BackupPolicySpec{KeepLast: 1}, more: []*v1alpha1.Backup{failedOld, failedNew, running},
			keeps: []string{"2026-11-30 14:00", "2026-11-30 15:00", "2026-11-30 16:00"},
		},
	} {
		given := append(slices.Clone(all), c.more...)
		gone := expired(c.policy, given)
		if c.keeps == nil {
			if len(gone) > 0 {
				t.Errorf("%s: %d are gone", name, len(gone))
			}
			continue
		}
		var kept []string
		for _, b := range given {
			if !slices.Contains(gone, b) {
				kept = append(kept, b.Name)
			}
		}
		slices.Sort(kept)
		if !slices.Equal(kept, c.keeps) {
			t.Errorf("%s: kept %v, want %v", name, kept, c.keeps)
		}
	}
}

func TestLastDue(t *testing.T) {
	nightly, err := cron.ParseStandard("0 2 * * *")
	if err != nil {
		t.Fatal(err)
	}
	noon := time.Date(2026, 11, 25, 12, 0, 0, 0, time.UTC)
	for name, c := range map[string]struct{ after, want time.Time }{
		"not yet":                 {noon.Add(-time.Hour), time.Time{}},
		"once":                    {noon.Add(-24 * time.Hour), noon.Add(-10 * time.Hour)},
		"many were missed":        {noon.Add(-240 * time.Hour), noon.Add(-10 * time.Hour)},
		"the clock was set back":  {noon.Add(time.Hour), time.Time{}},
		"exactly at the due time": {noon.Add(-10 * time.Hour), time.Time{}},
	} {
		if got := lastDue(nightly, c.after, noon); !got.Equal(c.want) {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
	}
}

func TestParseSchedule(t *testing.T) {
	for text, want := range map[string]string{
		"0 2 * * *": "02:00", "@daily": "00:00", "CRON_TZ=Asia/Tokyo 0 2 * * *": "17:00", "": "", "whenever": "", "0 25 * * *": "",
		"CRON_TZ=Asia/Tokyo": "", "TZ=": "", "TZ= ": "", "CRON_TZ=Nowhere/None 0 2 * * *": "", "CRON_TZ=../etc/passwd 0 2 * * *": "",
	} {
		schedule, err := ParseSchedule("--schedule", text)
		if want == "" {
			if !backingimage.Is(err, backingimage.Invalid) || !strings.Contains(err.Error(), "--schedule") {
				t.Errorf("%q gives %v", text, err)
			}
			continue
		}
		if err != nil || schedule.Next(time.Date(2026, 11, 25, 0, 0, 0, -1, time.UTC)).Format("15:04") != want {
			t.Errorf("%q gives %v, want %s", text, err, want)
		}
	}
}
