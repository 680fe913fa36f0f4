package backingimage

import (
	"fmt"
	"strings"
)

// SizeText is a number of bytes for people, such as 2.1 GiB, in the largest binary unit that leaves it at least 1.
func SizeText(bytes int64) string {
	const units = "KMGTPE"
	if bytes < 1024 {
		return fmt.Sprintf("%d B", bytes)
	}
	value, unit := float64(bytes)/1024, 0
	for value >= 1023.95 && unit < len(units)-1 {
		value, unit = value/1024, unit+1
	}
	return strings.TrimSuffix(fmt.Sprintf("%.1f", value), ".0") + " " + string(units[unit]) + "iB"
}

// ExactSizeText is SizeText with the exact number behind it: "10 GiB (10737418240 bytes)".
func ExactSizeText(bytes int64) string {
	if bytes < 1024 {
		return SizeText(bytes)
	}
	return fmt.Sprintf("%s (%d bytes)", SizeText(bytes), bytes)
}
