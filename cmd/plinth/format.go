package main

import (
	"fmt"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/duration"
	"k8s.io/apimachinery/pkg/util/validation"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/cmd/internal/program"
)

// sizeText is a number of bytes for people; "" for none.
func sizeText(bytes int64) string {
	if bytes <= 0 {
		return ""
	}
	return backingimage.SizeText(bytes)
}

// exactSizeText is sizeText with the exact number behind it.
func exactSizeText(bytes int64) string {
	if bytes <= 0 {
		return ""
	}
	return backingimage.ExactSizeText(bytes)
}

// parseSize reads a flag's size in bytes: 10Gi, 10G or 10737418240. "" is 0.
func parseSize(flag, value string) (int64, error) {
	if value == "" {
		return 0, nil
	}
	return program.Size(strings.TrimPrefix(flag, "--"), value, 1)
}

// validateName checks a name that the API server must accept as an object's.
func validateName(noun, name string) error {
	if problems := validation.IsDNS1123Subdomain(name); len(problems) > 0 {
		return backingimage.Errorf(backingimage.Invalid,
			"%q is not a name that %s can have: use at most 253 lower-case letters, digits, '-' and '.', beginning and ending with a letter or digit, like fedora-42", name, noun)
	}
	return nil
}

// tagList is a comma list without blanks and empty entries.
func tagList(values []string) []string {
	var tags []string
	for _, v := range values {
		if v = strings.TrimSpace(v); v != "" {
			tags = append(tags, v)
		}
	}
	return tags
}

// beginning is as much of a message as a table has room for; show has all of it.
func beginning(message string) string { return fitting(oneLine(message), 80) }

// ageText is how long ago t was, like 5m or 3d.
func ageText(now time.Time, t metav1.Time) string {
	if t.IsZero() {
		return ""
	}
	return duration.HumanDuration(max(now.Sub(t.Time), 0))
}

// timeText is a time for show commands, with how long ago it was.
func timeText(now time.Time, t metav1.Time) string {
	if t.IsZero() {
		return ""
	}
	return fmt.Sprintf("%s (%s ago)", t.UTC().Format(time.RFC3339), ageText(now, t))
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

// conditionText is yes, or no with the reason, or unknown.
func conditionText(conditions []metav1.Condition, kind string) string {
	c := meta.FindStatusCondition(conditions, kind)
	switch {
	case c == nil || c.Status == metav1.ConditionUnknown:
		return "unknown"
	case c.Status == metav1.ConditionTrue:
		return "yes"
	case c.Message != "":
		return "no: " + c.Message
	}
	return "no"
}

// setConditionText is a condition with its message, "" where it is not set.
func setConditionText(conditions []metav1.Condition, kind string) string {
	c := meta.FindStatusCondition(conditions, kind)
	if c == nil {
		return ""
	}
	return yesNo(c.Status == metav1.ConditionTrue) + ": " + c.Message
}

// conditionWord is yes, or the reason why not, or unknown: as much as a table has room for.
func conditionWord(conditions []metav1.Condition, kind string) string {
	if c := meta.FindStatusCondition(conditions, kind); c != nil && c.Status == metav1.ConditionFalse {
		return "no: " + c.Reason
	}
	return conditionText(conditions, kind)
}

// countText is a number for a table; "" for none.
func countText(n int) string {
	if n == 0 {
		return ""
	}
	return fmt.Sprint(n)
}
