// A client of the mesh with generated stubs and nothing else: what a service in another language writes.
//
// Reads one JSON object from stdin: { target, key, requests, refused }, the requests in the protos' JSON form.
// Sends each of `requests` through Generate and all of them through one Session, `refused` through both, and
// prints what came back as one JSON object. Run as TypeScript by Node itself, which strips the types.

import { text } from "node:stream/consumers";

import { credentials, Metadata, type ServiceError } from "@grpc/grpc-js";

import { ErrorInfo } from "./stubs/google/rpc/error_details.ts";
import { Status } from "./stubs/google/rpc/status.ts";
import {
  type Finish,
  GenerateRequest,
  InferenceServiceClient,
  type SessionRequest,
  type SessionResponse,
} from "./stubs/headrace/inference/v1/inference.ts";

const DEADLINE_MS = 20_000;

interface Plan {
  target: string;
  key: string;
  requests: unknown[];
  refused: unknown;
}

/** What the mesh answered, in the form that the test compares. */
interface Answer {
  text: string;
  tokenIds: number[];
  finishReason: string;
  outputTokens: number;
  messages: number;
}

interface Refusal {
  code: number;
  message: string;
  reason: string;
  domain: string;
  metadata: Record<string, string>;
}

function newAnswer(): Answer {
  return { text: "", tokenIds: [], finishReason: "", outputTokens: 0, messages: 0 };
}

function finish(answer: Answer, how: Finish): void {
  answer.finishReason = how.reason;
  answer.outputTokens = how.usage?.outputTokens ?? 0;
}

/** A google.rpc.Status, from a call's trailers or from inside a stream, and its ErrorInfo. */
function refusal(status: Status): Refusal {
  const packed = status.details.find((detail) => detail.typeUrl.endsWith("/google.rpc.ErrorInfo"));
  const { reason, domain, metadata } = ErrorInfo.decode(packed?.value ?? new Uint8Array());
  return { code: status.code, message: status.message, reason, domain, metadata };
}

async function generate(client: InferenceServiceClient, key: Metadata, request: GenerateRequest): Promise<Answer> {
  const answer = newAnswer();
  for await (const response of client.generate(request, key, { deadline: Date.now() + DEADLINE_MS })) {
    answer.messages += 1;
    answer.text += response.text;
    answer.tokenIds.push(...response.tokenIds);
    if (response.finish) finish(answer, response.finish);
  }
  return answer;
}

async function refusedGenerate(client: InferenceServiceClient, key: Metadata, request: GenerateRequest): Promise<Refusal> {
  try {
    await generate(client, key, request);
  } catch (error) {
    const [details] = (error as ServiceError).metadata.get("grpc-status-details-bin");
    return refusal(Status.decode(details as Buffer));
  }
  throw new Error("the mesh answered what it should refuse");
}

/** Adds one message of a session to the answers of its generations. */
function take(response: SessionResponse, requests: GenerateRequest[], answers: Answer[], refusals: Refusal[]): void {
  let next = 0;
  response.ids.forEach((id, index) => {
    const answer = answers[id];
    answer.messages += 1;
    answer.text += response.texts[index] ?? "";
    if (requests[id].outputForm.endsWith("TOKEN_IDS")) {
      answer.tokenIds.push(...response.tokenIds.slice(next, (next += response.counts[index])));
    }
  });
  for (const end of response.ends) {
    if (end.finish) finish(answers[end.id], end.finish);
    if (end.failure) refusals.push(refusal(Status.fromPartial(end.failure)));
  }
}

/** All requests on one stream, each under its index. */
async function session(client: InferenceServiceClient, key: Metadata, requests: GenerateRequest[]) {
  const answers = requests.map(newAnswer);
  const refusals: Refusal[] = [];
  const stream = client.session(key, { deadline: Date.now() + DEADLINE_MS });
  const message: SessionRequest = { generates: requests.map((request, id) => ({ id, request })), cancels: [] };
  stream.write(message);
  stream.end();
  for await (const response of stream) take(response, requests, answers, refusals);
  return { answers, refusals };
}

const plan = JSON.parse(await text(process.stdin)) as Plan;
const client = new InferenceServiceClient(plan.target, credentials.createInsecure());
const key = new Metadata();
key.set("authorization", `Bearer ${plan.key}`);
const requests = plan.requests.map((request) => GenerateRequest.fromJSON(request));
const refused = GenerateRequest.fromJSON(plan.refused);

const generated = await Promise.all(requests.map((request) => generate(client, key, request)));
const { answers, refusals } = await session(client, key, [...requests, refused]);
const result = {
  generate: generated,
  session: answers.slice(0, requests.length),
  refusedGenerate: await refusedGenerate(client, key, refused),
  refusedSession: refusals,
};
client.close();
console.log(JSON.stringify(result));
