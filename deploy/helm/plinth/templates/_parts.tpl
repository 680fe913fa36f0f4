{{- /* Parts of pods that both have. */ -}}

{{- /* The objects in a file of deploy/kubernetes: (dict "root" $ "file" name). */ -}}
{{- define "plinth.objects" -}}
{{- range (include "plinth.file" (dict "root" .root "path" (printf "objects/%s.yaml" .file)) | splitList "\n---\n") }}
{{- include "plinth.object" (fromYaml .) }}
{{- end }}
{{- end }}

{{- /* A file of this folder's, in the namespace of the release: (dict "root" $ "path" path). */ -}}
{{- define "plinth.file" -}}
{{ .root.Files.Get .path | replace "namespace: plinth\n" (printf "namespace: %s\n" .root.Release.Namespace) }}
{{- end }}

{{- /* One object with this chart's label. */ -}}
{{- define "plinth.object" -}}
{{- $labels := .metadata.labels | default dict }}
{{- $_ := set $labels "app.kubernetes.io/part-of" "plinth" }}
{{- $_ := set .metadata "labels" $labels }}
---
{{ toYaml . }}
{{- end }}

{{- define "plinth.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}

{{- define "plinth.labels" -}}
app.kubernetes.io/name: plinth
app.kubernetes.io/component: {{ . }}
{{- end }}

{{- /* The probes: starting is when the API answers, which may be long after; living is asked by way of CSI. */ -}}
{{- define "plinth.probes" -}}
startupProbe:
  httpGet: {path: /readyz, port: http}
  periodSeconds: 2
  timeoutSeconds: 3
  failureThreshold: 900
readinessProbe:
  httpGet: {path: /readyz, port: http}
  periodSeconds: 5
  timeoutSeconds: 3
livenessProbe:
  httpGet: {path: /healthz, port: 9808}
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 6
{{- end }}

{{- /* A container without power over anything: a list of the security context's lines. */ -}}
{{- define "plinth.restricted" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end }}

{{- define "plinth.livenessprobe" -}}
name: livenessprobe
image: {{ .Values.sidecars.livenessprobe.image }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
args:
  - --csi-address=/csi/csi.sock
  - --health-port=9808
  - --probe-timeout=3s
resources:
  requests: {cpu: 5m, memory: 16Mi}
  limits: {memory: 64Mi}
volumeMounts:
  - name: socket
    mountPath: /csi
{{- end }}

{{- /* The directories of backups, as mounts of the container plinth and as volumes. */ -}}
{{- define "plinth.backupMounts" -}}
{{- range $i, $d := .Values.backupDirectories }}
- name: backups-{{ $i }}
  mountPath: {{ $d.path }}
  mountPropagation: HostToContainer
{{- end }}
{{- end }}

{{- define "plinth.backupVolumes" -}}
{{- range $i, $d := .Values.backupDirectories }}
- name: backups-{{ $i }}
  {{- toYaml $d.volume | nindent 2 }}
{{- end }}
{{- end }}
