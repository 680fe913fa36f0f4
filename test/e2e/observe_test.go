package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// metrics are what Prometheus would read of a pod of Plinth's: values by name and labels, as they are written.
func (s *space) metrics(pod string) map[string]float64 {
	s.Helper()
	text := mustKubectl(s, "", "get", "--raw", "/api/v1/namespaces/"+namespace+"/pods/"+pod+":9280/proxy/metrics")
	values := map[string]float64{}
	for line := range strings.Lines(text) {
		if line = strings.TrimSpace(line); line == "" || line[0] == '#' {
			continue
		}
		at := strings.LastIndexByte(line, ' ')
		value, err := strconv.ParseFloat(line[at+1:], 64)
		if err != nil {
			s.Fatalf("pod %s: %q is no metric: %v", pod, line, err)
		}
		values[line[:at]] = value
	}
	return values
}

// sum adds the values of a metric whatever its labels, if one of them is as said.
func sum(values map[string]float64, name, label string) (total float64) {
	for key, v := range values {
		if of, _, _ := strings.Cut(key, "{"); of == name && strings.Contains(key, label) {
			total += v
		}
	}
	return total
}

// What Prometheus reads tells of an image that was fetched, of the volume that was staged, and who leads.
func TestMetricsTellWhatHappened(t *testing.T) {
	s := newSpace(t)
	image := mustImage(t, ext4Image)
	class := s.class("c", late, s.onDemand("golden", image))
	node := s.running(s.pod("p", []string{s.claim("p", class, "100Mi")}))
	agent := s.metrics(s.agent(node))
	for _, name := range []string{"plinth_csi_rpc_seconds_count", "plinth_stage_wait_seconds_count", "plinth_api_requests_total", "process_resident_memory_bytes"} {
		if sum(agent, name, "") < 1 {
			t.Errorf("the agent on %s has no %s", node, name)
		}
	}
	if sum(agent, "plinth_csi_rpc_seconds_count", `method="NodeStageVolume"`) < 1 {
		t.Errorf("the agent on %s tells of no NodeStageVolume", node)
	}
	must(t, "the leader to count the image", func(ctx context.Context) error {
		list, err := the.core.CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{LabelSelector: "app.kubernetes.io/component=controller"})
		if err != nil {
			return err
		}
		var leaders, ready, nodes, disks, created float64
		for _, p := range list.Items {
			m := s.metrics(p.Name)
			leaders += m["plinth_leader"]
			ready += sum(m, "plinth_image_copies_ready", `image="`+s.name+`-golden"`)
			nodes += sum(m, "plinth_nodes", `ready="true"`)
			disks += sum(m, "plinth_disk_ready", "")
			created += sum(m, "plinth_csi_rpc_seconds_count", `method="CreateVolume"`)
		}
		if leaders != 1 || ready < 1 || int(nodes) != len(s.nodes()) || disks < nodes || created < 1 {
			return fmt.Errorf("%v lead; %v copies of the image, %v nodes and %v disks are ready; %v calls of CreateVolume", leaders, ready, nodes, disks, created)
		}
		return nil
	})
}

// finding is one of plinth doctor -o json.
type finding struct{ Severity, Kind, Name, Problem, Message, Remedy string }

// doctor runs plinth doctor and returns its exit code and what it found beside notes.
func (s *space) doctor(ctx context.Context) (code int, found []finding, err error) {
	cmd := exec.CommandContext(ctx, *plinth, "doctor", "-o", "json", "--kubeconfig", the.kubeconfig)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		code, err = exit.ExitCode(), nil
	}
	var diagnosis struct{ Findings []finding }
	if err == nil {
		err = json.Unmarshal(out, &diagnosis)
	}
	for _, f := range diagnosis.Findings {
		if f.Severity != "note" {
			found = append(found, f)
		}
	}
	return code, found, err
}

// The doctor says nothing of a cluster that is well, names what is wrong and ends with a code that scripts understand.
func TestDoctorNamesWhatIsWrong(t *testing.T) {
	s := newSpace(t)
	says := func(code int, of string) {
		t.Helper()
		must(t, fmt.Sprintf("the doctor to end with %d and tell of %q", code, of), func(ctx context.Context) error {
			got, found, err := s.doctor(ctx)
			if err != nil {
				return err
			}
			told := of == "" && len(found) == 0
			for _, f := range found {
				told = told || of != "" && f.Name == of && f.Message != "" && f.Remedy != ""
			}
			if got != code || !told {
				return fmt.Errorf("it ends with %d and finds %+v", got, found)
			}
			return nil
		})
	}
	says(0, "")
	parameters := s.fromURL("gone", the.server.url+"/there-is-nothing.qcow2")
	claim := s.claim("c", s.class("c", immediate, parameters), "100Mi")
	says(5, parameters["backingImage"])
	mustKubectl(t, "", "delete", "pvc", "-n", s.name, claim, "--wait", "--timeout=60s")
	mustKubectl(t, "", "delete", "backingimage", parameters["backingImage"], "--ignore-not-found", "--timeout=60s")
	says(0, "")
}
