{{- define "ifsq.labels" -}}
app.kubernetes.io/part-of: ifsq-train
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/instance: {{ .Release.Name }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}
{{/* Pods that `ifsq submit` makes. */}}
{{- define "ifsq.podSelector" -}}
app.kubernetes.io/part-of: ifsq-train
app.kubernetes.io/managed-by: ifsq
{{- end }}

{{- /* "yes" for an IPv4 block that holds 169.254.169.254 (2852039166), the metadata server. */}}
{{- define "ifsq.holdsMetadata" -}}
{{- $block := splitList "/" . -}}
{{- $size := 1 -}}
{{- range until (int (sub 32 (int (index $block 1)))) }}{{ $size = mul $size 2 }}{{ end -}}
{{- $address := 0 -}}
{{- range splitList "." (index $block 0) }}{{ $address = add (mul $address 256) (int .) }}{{ end -}}
{{- if eq (div $address $size) (div 2852039166 $size) -}}
{{- if eq $size 1 }}{{ fail (printf "%s is the metadata server, which gives a node's credentials to whoever asks; leave it out of networkPolicy.egressCidrs" .) }}{{ end -}}
yes
{{- end -}}
{{- end }}
