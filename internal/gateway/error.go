package gateway

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"strings"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/api"
)

// ErrorHeader marks an answer as an Error of the edge itself, so that it can be told from what an agent answered.
const ErrorHeader = "Spore-Error"

// statusCanceled is what proxies have long answered when the client ended the request.
const statusCanceled = 499

var statusOf = map[spore.Code]int{
	spore.CodeInvalid:         http.StatusBadRequest,
	spore.CodeUnauthenticated: http.StatusUnauthorized,
	spore.CodeNotFound:        http.StatusNotFound,
	spore.CodeConflict:        http.StatusConflict,
	spore.CodeInUse:           http.StatusConflict,
	spore.CodeStale:           http.StatusConflict,
	spore.CodeBusy:            http.StatusServiceUnavailable,
	spore.CodeNoSpace:         http.StatusInsufficientStorage,
	spore.CodeUnreachable:     http.StatusBadGateway,
	spore.CodeDamaged:         http.StatusInternalServerError,
	spore.CodeUnsupported:     http.StatusNotImplemented,
	spore.CodeCanceled:        statusCanceled,
	spore.CodeInternal:        http.StatusInternalServerError,
}

// hintOf is what to do about refusals that come without a hint of their own.
var hintOf = map[spore.Reason]string{
	spore.ReasonTemplateNotFound:   "see which there are: spore template ls",
	spore.ReasonSnapshotNotFound:   "see which there are: spore snapshot ls",
	spore.ReasonOperationNotFound:  "see which there are: spore job ls",
	spore.ReasonTemplateIDRequired: "see which there are: spore template ls",
}

// writeError answers err. An internal error is logged in full and shown only as one.
func writeError(w http.ResponseWriter, r *http.Request, err error) {
	shown := shownError(r.Context(), err)
	status := statusOf[shown.Code]
	var special *statusError
	if errors.As(err, &special) {
		status = special.status
	} else if shown.Code == spore.CodeUnreachable && shown.Reason == spore.ReasonStoreUnavailable {
		status = http.StatusServiceUnavailable // it is the server itself that cannot answer for now, not something behind it
	}
	writeStatusError(w, r, status, shown)
}

// statusError is an error that HTTP has a status of its own for.
type statusError struct {
	status int
	err    error
}

func (e *statusError) Error() string { return e.err.Error() }
func (e *statusError) Unwrap() error { return e.err }

func writeStatusError(w http.ResponseWriter, r *http.Request, status int, shown api.Error) {
	h := w.Header()
	h.Del("Content-Length")
	h.Set("Content-Type", "application/json")
	h.Set(ErrorHeader, string(shown.Code))
	switch {
	case status == http.StatusServiceUnavailable:
		h.Set("Retry-After", "1")
	case shown.Code == spore.CodeUnauthenticated:
		h.Set("WWW-Authenticate", `Bearer realm="spore"`)
	}
	w.WriteHeader(status)
	if err := json.NewEncoder(w).Encode(shown); err != nil {
		logOf(r.Context()).Debug("error not delivered", "err", err)
	}
}

// shownError is err as the client may see it.
func shownError(ctx context.Context, err error) api.Error {
	e := spore.AsError(err)
	if _, known := statusOf[e.Code]; !known || e.Code == spore.CodeInternal {
		logOf(ctx).Error("internal error", "err", err)
		return api.Error{
			Code:    spore.CodeInternal,
			Message: "internal error",
			Hint:    "the server's log has the details under request " + requestID(ctx),
		}
	}
	if e.Code == spore.CodeDamaged {
		logOf(ctx).Error("damaged", "err", err)
	}
	return *wireError(e)
}

// wireError leaves out causes that were not meant for users, and those that the message tells already.
func wireError(e *spore.Error) *api.Error {
	if e == nil {
		return nil
	}
	out := &api.Error{Code: e.Code, Message: e.Message, Field: e.Field, Hint: cmp.Or(e.Hint, hintOf[e.Reason]), Reason: e.Reason}
	if e.Code == spore.CodeInternal {
		out.Message = "internal error"
	}
	var cause *spore.Error
	if e.Cause != nil && errors.As(e.Cause, &cause) && cause.Code != spore.CodeInternal && !strings.Contains(e.Message, cause.Message) {
		out.Cause = cause.Error()
	}
	return out
}

func unknownRoute(mux *http.ServeMux) http.HandlerFunc {
	methods := []string{http.MethodGet, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete}
	return func(w http.ResponseWriter, r *http.Request) {
		var allowed []string
		for _, m := range methods {
			probe := r.Clone(r.Context())
			probe.Method = m
			if _, pattern := mux.Handler(probe); pattern != "/" && pattern != "" {
				allowed = append(allowed, m)
			}
		}
		if len(allowed) == 0 {
			writeError(w, r, spore.Errorf(spore.CodeNotFound, "there is nothing at %s", r.URL.Path).WithHint("the API is described at /v1/openapi.yaml"))
			return
		}
		w.Header().Set("Allow", strings.Join(allowed, ", "))
		e := spore.Errorf(spore.CodeInvalid, "%s does not take %s", r.URL.Path, r.Method).WithHint("use %s", strings.Join(allowed, " or "))
		writeStatusError(w, r, http.StatusMethodNotAllowed, *wireError(e))
	}
}

// paramError names the parameter that could not be read.
func paramError(err error) error {
	var format *api.InvalidParamFormatError
	var many *api.TooManyValuesForParamError
	var missing *api.RequiredParamError
	switch {
	case errors.As(err, &format):
		return spore.Invalidf(format.ParamName, "the value cannot be read").WithCause(err)
	case errors.As(err, &many):
		return spore.Invalidf(many.ParamName, "%d values where one is expected", many.Count)
	case errors.As(err, &missing):
		return spore.Invalidf(missing.ParamName, "is missing")
	}
	return spore.Errorf(spore.CodeInvalid, "the request cannot be read").WithCause(err)
}
