package gateway

import (
	"reflect"

	"github.com/sporevm/spore/api"
)

// route says what a native route takes: the type of its body and of its parameters, nil for none.
type route struct{ body, params reflect.Type }

func plain() route        { return route{} }
func takes[B any]() route { return route{body: reflect.TypeFor[B]()} }
func asks[P any]() route  { return route{params: reflect.TypeFor[P]()} }
func takesAndAsks[B, P any]() route {
	return route{body: reflect.TypeFor[B](), params: reflect.TypeFor[P]()}
}

// routes lists every route of the native API.
var routes = map[string]route{
	"GET /healthz": plain(),
	"GET /metrics": plain(),

	"GET /v1/templates":                asks[api.ListTemplatesParams](),
	"POST /v1/templates":               takesAndAsks[api.BuildRequest, api.BuildTemplateParams](),
	"POST /v1/templates/delete":        takes[api.BatchDeleteRequest](),
	"GET /v1/templates/{ref}":          asks[api.GetTemplateParams](),
	"PATCH /v1/templates/{ref}":        takes[api.TemplateUpdate](),
	"DELETE /v1/templates/{ref}":       asks[api.DeleteTemplateParams](),
	"GET /v1/templates/{ref}/replicas": plain(),
	"GET /v1/templates/{ref}/refs":     asks[api.ListTemplateRefsParams](),
	"GET /v1/templates/{ref}/nodes":    plain(),
	"GET /v1/templates/{ref}/lineage":  asks[api.GetLineageParams](),
	"POST /v1/templates/{ref}/redo":    takesAndAsks[api.RedoRequest, api.RedoTemplateParams](),
	"GET /v1/diff":                     asks[api.DiffParams](),
	"GET /v1/lineage":                  asks[api.ListLineageParams](),

	"GET /v1/aliases":                 asks[api.ListAliasesParams](),
	"GET /v1/aliases/{alias}":         plain(),
	"PUT /v1/aliases/{alias}":         takes[api.AliasRequest](),
	"DELETE /v1/aliases/{alias}":      asks[api.DeleteAliasParams](),
	"GET /v1/aliases/{alias}/history": asks[api.ListAliasHistoryParams](),

	"GET /v1/snapshots":                asks[api.ListSnapshotsParams](),
	"GET /v1/snapshots/{ref}":          asks[api.GetSnapshotParams](),
	"POST /v1/snapshots/{ref}/release": takes[api.ReleaseRequest](),
	"DELETE /v1/snapshots/{ref}":       asks[api.DeleteSnapshotParams](),
	"GET /v1/operations/{id}":          plain(),

	"GET /v1/sandboxes":                 asks[api.ListSandboxesParams](),
	"POST /v1/sandboxes":                takesAndAsks[api.CreateRequest, api.CreateSandboxParams](),
	"POST /v1/sandboxes/preview":        takes[api.CreateRequest](),
	"GET /v1/sandboxes/{id}":            plain(),
	"DELETE /v1/sandboxes/{id}":         plain(),
	"PATCH /v1/sandboxes/{id}":          takes[api.SandboxUpdate](),
	"GET /v1/sandboxes/{id}/ports":      plain(),
	"POST /v1/sandboxes/{id}/ports":     takes[api.PortRequest](),
	"DELETE /v1/sandboxes/{id}/ports":   asks[api.UnpublishPortParams](),
	"GET /v1/sandboxes/{id}/refs":       asks[api.ListSandboxRefsParams](),
	"POST /v1/sandboxes/{id}/pause":     plain(),
	"POST /v1/sandboxes/{id}/resume":    takes[api.ResumeRequest](),
	"POST /v1/sandboxes/{id}/extend":    takes[api.ExtendRequest](),
	"GET /v1/sandboxes/{id}/logs":       asks[api.GetSandboxLogsParams](),
	"POST /v1/sandboxes/{id}/snapshots": takesAndAsks[api.SnapshotRequest, api.CreateSnapshotParams](),
	"POST /v1/sandboxes/{id}/rollback":  takesAndAsks[api.RollbackRequest, api.RollbackSandboxParams](),
	"POST /v1/sandboxes/{id}/commit":    takesAndAsks[api.CommitRequest, api.CommitSandboxParams](),
	"POST /v1/forks":                    takesAndAsks[api.ForkRequest, api.ForkParams](),

	"GET /v1/jobs":              asks[api.ListJobsParams](),
	"GET /v1/jobs/{id}":         plain(),
	"POST /v1/jobs/{id}/cancel": plain(),
	"GET /v1/jobs/{id}/log":     asks[api.GetJobLogParams](),
	"GET /v1/jobs/{id}/watch":   plain(),

	"GET /v1/artifacts":               asks[api.ListArtifactsParams](),
	"GET /v1/artifacts/{id}":          plain(),
	"POST /v1/artifacts/{id}/token":   takes[api.ArtifactTokenRequest](),
	"POST /v1/artifacts/{id}/verify":  takes[api.VerifyRequest](),
	"GET /v1/artifacts/{id}/content":  plain(),
	"HEAD /v1/artifacts/{id}/content": plain(),

	"GET /v1/compat":        asks[api.GetCompatMatrixParams](),
	"POST /v1/compat/scan":  takes[api.NodeSelection](),
	"POST /v1/compat/adopt": takes[api.AdoptRequest](),

	"GET /v1/nodes":               asks[api.ListNodesParams](),
	"GET /v1/nodes/storage":       asks[api.GetNodeStorageParams](),
	"GET /v1/nodes/{id}":          plain(),
	"PATCH /v1/nodes/{id}":        takes[api.NodeUpdate](),
	"DELETE /v1/nodes/{id}":       asks[api.ForgetNodeParams](),
	"POST /v1/nodes/{id}/drain":   plain(),
	"POST /v1/nodes/{id}/undrain": plain(),

	"GET /v1/kernels":         plain(),
	"POST /v1/kernels":        takes[api.KernelRequest](),
	"DELETE /v1/kernels/{id}": plain(),
	"POST /v1/check":          asks[api.CheckParams](),
	"POST /v1/gc":             asks[api.CollectGarbageParams](),
	"GET /v1/explain/{id}":    plain(),
	"GET /v1/info":            plain(),
}
