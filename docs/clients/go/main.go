// Command segment asks for one phrase in one image:
//
//	go run . IMAGE PROMPT OUT.png
//
// against PSEG_SERVER; PSEG_CA (PEM) and PSEG_KEY for TLS and a bearer key.
package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	pb "pseg.dev/example/psegv1"
)

// What a request id makes safe to repeat, the library repeats.
const serviceConfig = `{"methodConfig": [{
  "name": [{"service": "pseg.v1.SegmentationService"}],
  "retryPolicy": {"maxAttempts": 5, "initialBackoff": "0.1s", "maxBackoff": "2s",
                  "backoffMultiplier": 2, "retryableStatusCodes": ["UNAVAILABLE"]}}]}`

type bearer string

func (b bearer) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	return map[string]string{"authorization": "Bearer " + string(b)}, nil
}
func (bearer) RequireTransportSecurity() bool { return true }

func connect() (*grpc.ClientConn, error) {
	server := os.Getenv("PSEG_SERVER")
	if server == "" {
		server = "127.0.0.1:7433"
	}
	options := []grpc.DialOption{grpc.WithDefaultServiceConfig(serviceConfig)}
	if ca := os.Getenv("PSEG_CA"); ca != "" {
		tls, err := credentials.NewClientTLSFromFile(ca, "")
		if err != nil {
			return nil, err
		}
		options = append(options, grpc.WithTransportCredentials(tls))
		if key := os.Getenv("PSEG_KEY"); key != "" {
			options = append(options, grpc.WithPerRPCCredentials(bearer(key)))
		}
	} else {
		options = append(options, grpc.WithTransportCredentials(insecure.NewCredentials()))
	}
	return grpc.NewClient(server, options...)
}

func isTerminal(s pb.State) bool { return s >= pb.State_STATE_SUCCEEDED }

// segment gives the job, once it has succeeded, and its first mask as PNG.
func segment(ctx context.Context, client pb.SegmentationServiceClient, image []byte, prompt string) (*pb.Job, []byte, error) {
	job, err := client.CreateJob(ctx, &pb.CreateJobRequest{
		RequestId: rand.Text(), // of our own: a repeated call never makes a second job
		Job: &pb.JobSpec{
			Image:   &pb.JobSpec_Content{Content: image},
			Prompts: []*pb.Prompt{{Text: prompt}},
		}})
	for err == nil && !isTerminal(job.State) {
		job, err = client.WaitJob(ctx, &pb.WaitJobRequest{Name: job.Name})
	}
	if err != nil {
		return nil, nil, err
	}
	if job.State != pb.State_STATE_SUCCEEDED {
		return nil, nil, fmt.Errorf("%s: %v: %s", job.Name, job.State, job.Error.GetMessage())
	}
	stream, err := client.FetchMasks(ctx, &pb.FetchMasksRequest{
		Name: job.Name, Format: &pb.MaskFormat{Encoding: pb.MaskEncoding_MASK_ENCODING_PNG}})
	if err != nil {
		return nil, nil, err
	}
	var mask []byte
	for {
		part, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return job, mask, nil
		}
		if err != nil {
			return nil, nil, err
		}
		mask = append(mask, part.Mask.Data...)
	}
}

// explain tells what the details of a failed call say.
func explain(err error) string {
	reason, fields := "UNKNOWN", ""
	for _, detail := range status.Convert(err).Details() {
		switch d := detail.(type) {
		case *errdetails.ErrorInfo:
			reason = d.Reason
		case *errdetails.BadRequest:
			for _, v := range d.FieldViolations {
				fields += v.Field + " "
			}
		}
	}
	return fmt.Sprintf("%s %s%s", reason, fields, status.Convert(err).Message())
}

func main() {
	if len(os.Args) != 4 {
		fmt.Fprintln(os.Stderr, "usage: go run . IMAGE PROMPT OUT.png")
		os.Exit(2)
	}
	fail := func(text string) {
		fmt.Fprintln(os.Stderr, "error:", text)
		os.Exit(1)
	}
	image, err := os.ReadFile(os.Args[1])
	if err != nil {
		fail(err.Error())
	}
	conn, err := connect()
	if err != nil {
		fail(err.Error())
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	job, mask, err := segment(ctx, pb.NewSegmentationServiceClient(conn), image, os.Args[2])
	if err != nil {
		fail(explain(err))
	}
	if err := os.WriteFile(os.Args[3], mask, 0o644); err != nil {
		fail(err.Error())
	}
	fmt.Printf("%s iou=%.4f area=%d\n", job.Name, job.Results[0].PredictedIou, job.Results[0].AreaPx)
}
