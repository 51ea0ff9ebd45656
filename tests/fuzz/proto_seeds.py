#!/usr/bin/env python3
"""Writes the seeds of tests/fuzz/*_corpus that are not text: python3 proto_seeds.py (in this folder).
Needs protoc; made with protoc 3.21.12. The other seeds there were written by hand."""
import json
import pathlib
import subprocess
import zlib

HERE = pathlib.Path(__file__).resolve().parent
PROTO = HERE.parent.parent / "proto"


def encode(message, text):
    file = "pseg/internal/v1/record.proto" if ".internal." in message else \
        "inference/open_inference.proto" if message.startswith("inference.") else "pseg/v1/pseg.proto"
    return subprocess.run(["protoc", f"--encode={message}", f"-I{PROTO}", "-I/usr/include", file],
                          input=text.encode(), stdout=subprocess.PIPE, check=True).stdout


def put(name, data):
    (HERE / name).write_bytes(data)


JOB = '''job { %s prompts { text: "the small red circle" } prompts { text: "stern é" } model: "scenes"
  mask_threshold: 0.4 deadline { seconds: 1700000100 nanos: 5 } result_ttl { seconds: 3600 }
  labels { key: "batch" value: "7" } labels { key: "x.y" value: "ü" } }'''
SHA = "0123456789abcdef" * 4
NAME = "jobs/" + "0123456789abcdef" * 2
TENSORS = r"""model_name: "scenes" id: "7" parameters { key: "mask_encoding" value { string_param: "png" } }
  parameters { key: "timeout" value { int64_param: 1000000 } } parameters { key: "mask_threshold" value { double_param: 0.4 } }
  inputs { name: "IMAGE" datatype: "BYTES" shape: 1 %s } inputs { name: "PROMPTS" datatype: "BYTES" shape: 2 %s }
  outputs { name: "MASKS" } outputs { name: "IOU" } %s"""
IMAGE = r"\211PNG\r\n\032\n1234"
put("open_inference_corpus/typed", encode("inference.ModelInferRequest", TENSORS % (
    f'contents {{ bytes_contents: "{IMAGE}" }}', 'contents { bytes_contents: "a star" bytes_contents: "b" }', "")))
put("open_inference_corpus/raw", encode("inference.ModelInferRequest", TENSORS % (
    "", "", rf'raw_input_contents: "\014\000\000\000{IMAGE}" raw_input_contents: "\001\000\000\000a\006\000\000\000a star"')))
put("open_inference_corpus/sha", encode("inference.ModelInferRequest",
    f'parameters {{ key: "image_sha256" value {{ string_param: "{SHA}" }} }} inputs {{ name: "PROMPTS" datatype: "BYTES"'
    ' shape: 1 shape: 1 contents { bytes_contents: "é" } } outputs { name: "BOXES" }'))
put("proto_corpus/create", encode("pseg.v1.CreateJobRequest", 'request_id: "a-1" ' + JOB % r'content: "\211PNG\r\n\032\n1234"'))
put("proto_corpus/create_sha", encode("pseg.v1.CreateJobRequest", JOB % f'sha256: "{SHA}"'))
put("proto_corpus/segment", encode("pseg.v1.SegmentRequest", JOB % f'sha256: "{SHA}"' +
                                   "format { encoding: MASK_ENCODING_COCO_RLE threshold: 0.25 }"))
put("proto_corpus/header", encode("pseg.v1.UploadImageRequest", f'header {{ sha256: "{SHA}" size_bytes: 12 }}'))
put("proto_corpus/chunk", encode("pseg.v1.UploadImageRequest", r'chunk: "\377\330\377\340\000\020JFIF\000\001"'))
put("proto_corpus/check", encode("pseg.v1.BatchCheckImagesRequest", f'sha256: "{SHA}" sha256: "{SHA[::-1]}"'))
put("proto_corpus/name", encode("pseg.v1.GetJobRequest", f'name: "{NAME}"'))
put("proto_corpus/list", encode("pseg.v1.ListJobsRequest",
                                'page_size: 10 page_token: "t" states: STATE_QUEUED states: STATE_FAILED'))
put("proto_corpus/fetch", encode("pseg.v1.FetchMasksRequest",
                                 f'name: "{NAME}" prompt_indexes: 0 prompt_indexes: 3 format {{ threshold: 0.5 }}'))

spec = encode("pseg.internal.v1.JobSpec", f'''image_sha256: "{SHA}" prompts: "a" prompts: "b" model: "scenes"
  mask_threshold: 0.5 labels {{ key: "k" value: "v" }} request_id: "r" scheduler_version: "0.1.0"''')
result = encode("pseg.internal.v1.JobResult", '''image_width: 30 image_height: 20
  results { predicted_iou: 0.9 box_x: 1 box_y: 2 box_width: 3 box_height: 4 area_px: 9 grid_width: 8
            grid_height: 8 x1: 30 y1: 20 } results { predicted_iou: 0.1 truncated: true }
  stages { name: "encode_image" duration_us: 1234567 } model: "scenes" device: "d" worker: "w"''')
put("job_corpus/whole", bytes([(len(spec) * 255 + len(spec) + len(result) - 1) // (len(spec) + len(result)), 255]) +
    spec + result)
put("job_corpus/spec", bytes([255, 0]) + spec)


def tensors(header, data):
    head = json.dumps(header, separators=(",", ":")).encode()
    return len(head).to_bytes(8, "little") + head + data


put("safetensors_corpus/two", tensors(
    {"__metadata__": {"format": "pt"}, "a.weight": {"dtype": "F32", "shape": [2, 1], "data_offsets": [0, 8]},
     "b": {"dtype": "BF16", "shape": [], "data_offsets": [8, 10]}}, bytes(10)))
put("safetensors_corpus/head", tensors(
    {"__metadata__": {"pseg": json.dumps({"taps": [2, 4], "dim": 64}), "taps": "[2,4]", "dim": "64", "heads": "2",
                      "depth": "2", "upsample": "[32,16]", "fit": "letterbox", "image_size": "[28,28]"},
     "z": {"dtype": "I64", "shape": [1, 1], "data_offsets": [0, 8]}}, bytes(8)))
put("safetensors_corpus/index.json", json.dumps(
    {"metadata": {"total_size": 4}, "weight_map": {"a": "model-00001-of-00001.safetensors"}}).encode())

merges = b"#version: 0.2\nt h\nth e</w>\na r\nc ar</w>\n"
put("tokenizer_corpus/merges", b"m" + merges)
gz = zlib.compressobj(9, zlib.DEFLATED, 31)
put("tokenizer_corpus/gzip", b"g" + gz.compress(merges.replace(b"#version: 0.2", b"bpe_simple_vocab_16e6.txt")) + gz.flush())
put("tokenizer_corpus/vocab", b"v" + json.dumps({"<|startoftext|>": 3, "<|endoftext|>": 4, "the</w>": 0, "t": 1,
                                                 "a</w>": 2}).encode())
put("tokenizer_corpus/tokenizer", b"t" + json.dumps(
    {"version": "1.0", "added_tokens": [{"id": 3, "content": "<|startoftext|>", "special": True},
                                        {"id": 4, "content": "<|endoftext|>", "special": True}],
     "normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "Lowercase"}]},
     "model": {"type": "BPE", "unk_token": "<|endoftext|>", "end_of_word_suffix": "</w>",
               "vocab": {"t": 0, "h": 1, "th": 2}, "merges": ["t h"]}}).encode())
put("tokenizer_corpus/text", "Mthe café's 12 <|endoftext|> rocks, won't é 中文\t🙂".encode())
put("config_utf8_corpus/text", "aé中🙂 \u0301\u00a0Å½ǅ\ufeff".encode())
put("config_utf8_corpus/bad", b"\xc0\x80 \xed\xa0\x80 \xf4\x90\x80\x80 \xe2\x82")
put("rle_corpus/small", b"\x05\x00\x04\x0061N2\x00"[:-1])
