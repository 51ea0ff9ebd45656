#!/bin/sh
# Makes psegv1/ from the .proto; needs protoc, and the two plugins, which go installs:
#     go install google.golang.org/protobuf/cmd/protoc-gen-go@v1.36.6
#     go install google.golang.org/grpc/cmd/protoc-gen-go-grpc@v1.5.1
set -eu
cd "$(dirname "$0")"
PATH=$PATH:$(go env GOPATH)/bin
protoc -I../../../proto \
    --go_out=. --go_opt=module=pseg.dev/example,Mpseg/v1/pseg.proto='pseg.dev/example/psegv1;psegv1' \
    --go-grpc_out=. --go-grpc_opt=module=pseg.dev/example,Mpseg/v1/pseg.proto='pseg.dev/example/psegv1;psegv1' \
    pseg/v1/pseg.proto
