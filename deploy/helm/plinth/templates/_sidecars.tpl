{{- /* The sidecars that turn claims into CSI calls: a list of name, image and arguments. */ -}}
{{- define "plinth.sidecars" -}}
- name: csi-provisioner
  image: {{ .Values.sidecars.provisioner.image }}
  args:
    {{- include "plinth.sidecarArgs" . | nindent 4 }}
    - --extra-create-metadata
    - --controller-publish-readonly
    - --strict-topology
    - --enable-capacity
    - --capacity-ownerref-level=2
    - --capacity-poll-interval=30s
    - --kube-api-capacity-qps=20
    - --kube-api-capacity-burst=50
    {{- with .Values.sidecars.provisioner.extraArgs }}{{ toYaml . | nindent 4 }}{{ end }}
  env:
    - name: NAMESPACE
      valueFrom:
        fieldRef: {fieldPath: metadata.namespace}
    - name: POD_NAME
      valueFrom:
        fieldRef: {fieldPath: metadata.name}
- name: csi-resizer
  image: {{ .Values.sidecars.resizer.image }}
  args:
    {{- include "plinth.sidecarArgs" . | nindent 4 }}
    - --handle-volume-inuse-error=false
    {{- with .Values.sidecars.resizer.extraArgs }}{{ toYaml . | nindent 4 }}{{ end }}
{{- if .Values.sidecars.snapshotter.enabled }}
- name: csi-snapshotter
  image: {{ .Values.sidecars.snapshotter.image }}
  args:
    {{- include "plinth.sidecarArgs" . | nindent 4 }}
    - --extra-create-metadata
    {{- with .Values.sidecars.snapshotter.extraArgs }}{{ toYaml . | nindent 4 }}{{ end }}
{{- end }}
{{- end }}

{{- define "plinth.sidecarArgs" -}}
- --csi-address=/csi/csi.sock
- --leader-election
- --timeout=60s
- --retry-interval-start=500ms
- --retry-interval-max=1m
- --kube-api-qps=100
- --kube-api-burst=200
{{- end }}

{{- /* The one that programs ask by way of the network. */ -}}
{{- define "plinth.snapshotMetadata" -}}
name: csi-snapshot-metadata
image: {{ .Values.sidecars.snapshotMetadata.image }}
args:
  - --csi-address=/csi/csi.sock
  - --port=50051
  - --tls-cert=/tls/tls.crt
  - --tls-key=/tls/tls.key
  - --http-endpoint=:8080
  {{- with .Values.sidecars.snapshotMetadata.extraArgs }}{{ toYaml . | nindent 2 }}{{ end }}
ports:
  - name: snap-metadata
    containerPort: 50051
readinessProbe:
  httpGet: {path: /health, port: 8080}
  periodSeconds: 10
  timeoutSeconds: 3
volumeMounts:
  - name: socket
    mountPath: /csi
  - name: snapshot-metadata-tls
    mountPath: /tls
    readOnly: true
{{- end }}
