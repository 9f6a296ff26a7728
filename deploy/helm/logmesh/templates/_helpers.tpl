{{/* The names of everything begin so. */}}
{{- define "logmesh.fullname" -}}
{{- if contains "logmesh" .Release.Name }}{{ .Release.Name | trunc 40 | trimSuffix "-" }}{{ else }}{{ printf "%s-logmesh" .Release.Name | trunc 40 | trimSuffix "-" }}{{ end }}
{{- end }}

{{/* What tells the pods of one part from all others; of (list $ "gateway"). */}}
{{- define "logmesh.selector" -}}
app.kubernetes.io/name: logmesh
app.kubernetes.io/instance: {{ (index . 0).Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end }}

{{- define "logmesh.labels" -}}
{{ include "logmesh.selector" . }}
app.kubernetes.io/version: {{ (index . 0).Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ (index . 0).Release.Service }}
helm.sh/chart: logmesh-{{ (index . 0).Chart.Version }}
{{- end }}

{{/* Ports by part. */}}
{{- define "logmesh.port" -}}
{{ get (dict "console" "7400" "config" "7401" "gateway" "7402" "transfer" "7403" "etcd" "2379" "kafka" "9092" "elasticsearch" "9200") . }}
{{- end }}

{{- define "logmesh.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}

{{/* Addresses of a server, as the settings take them; of (list $ "etcd" "endpoints" "http://"). */}}
{{- define "logmesh.addresses" -}}
{{- $root := index . 0 }}{{ $name := index . 1 }}{{ $key := index . 2 }}
{{- $values := get $root.Values $name }}
{{- if $values.bundled -}}
{{ list (printf "%s%s-%s:%s" (index . 3) (include "logmesh.fullname" $root) $name (include "logmesh.port" $name)) | toJson }}
{{- else if get $values $key -}}
{{ get $values $key | toJson }}
{{- else -}}
{{ fail (printf "%s.%s must name your servers; %s.bundled=true makes one for a trial" $name $key $name) }}
{{- end }}
{{- end }}

{{/* Nothing but what is asked for: no root, no rights, nothing to write to. */}}
{{- define "logmesh.restricted" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
capabilities: { drop: [ALL] }
seccompProfile: { type: RuntimeDefault }
{{- end }}
