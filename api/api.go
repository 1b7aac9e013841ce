// Package api is the native HTTP API of Spore as Go: the types on the wire, a client and a server interface, all
// generated from openapi.yaml.
package api

import _ "embed"

//go:generate go run github.com/oapi-codegen/oapi-codegen/v2/cmd/oapi-codegen@v2.8.2 -config types.oapi.yaml openapi.yaml
//go:generate go run github.com/oapi-codegen/oapi-codegen/v2/cmd/oapi-codegen@v2.8.2 -config client.oapi.yaml openapi.yaml
//go:generate go run github.com/oapi-codegen/oapi-codegen/v2/cmd/oapi-codegen@v2.8.2 -config server.oapi.yaml openapi.yaml

// Spec is the description of the API in OpenAPI 3.0, as YAML. The server shows it at /v1/openapi.yaml.
//
//go:embed openapi.yaml
var Spec []byte
