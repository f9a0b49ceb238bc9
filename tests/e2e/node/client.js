// Drives the service with Node's gRPC and the proto files alone; prints one JSON line of what it saw.
import grpc from "@grpc/grpc-js";
import loader from "@grpc/proto-loader";

const [target, protos] = process.argv.slice(2);
const definition = loader.loadSync(["tokenwire/v1/text_generation.proto", "tokenwire/v1/tokenization.proto"], {
  includeDirs: [protos],
  keepCase: true,
  longs: String,
  enums: String,
  oneofs: true,
});
const { tokenwire } = grpc.loadPackageDefinition(definition);
const credentials = grpc.credentials.createInsecure();
const generation = new tokenwire.v1.TextGenerationService(target, credentials);
const tokenization = new tokenwire.v1.TokenizationService(target, credentials);

const unary = (client, method, request) =>
  new Promise((resolve) => client[method](request, (error, answer) => resolve({ error, answer })));

function stream(request, cancelAfter = Infinity) {
  return new Promise((resolve) => {
    const call = generation.GenerateStream(request);
    const events = [];
    let text = "";
    call.on("data", (event) => {
      events.push(event.event);
      if (event.delta) text += event.delta.text;
      if (events.length === cancelAfter) call.cancel();
    });
    call.on("error", (error) => resolve({ events, text, code: error.code }));
    call.on("end", () => resolve({ events, text, code: 0 }));
  });
}

const request = { text: "The capital of France is", sampling: { temperature: 0 }, stopping: { max_tokens: 12 } };
const whole = await unary(generation, "Generate", request);
if (whole.error) throw whole.error;
const streamed = await stream(request);
const cancelled = await stream({ ...request, stopping: { max_tokens: 400, ignore_eos: true } }, 5);
const bad = await unary(generation, "Generate", { ...request, sampling: { top_p: 2 } });
const tokens = await unary(tokenization, "Tokenize", { text: "Hello world" });
console.log(
  JSON.stringify({
    text: whole.answer.candidates[0].text,
    streamed,
    cancelledCode: cancelled.code,
    badCode: bad.error.code,
    badDetails: bad.error.details,
    tokenCount: tokens.answer.token_count,
  }),
);
