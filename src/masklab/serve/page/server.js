// Requests to the server of this page.

const TRIES = 30;
let token = sessionStorage.getItem("masklab-token") ?? "";
let askForToken = async () => "";

/** An answer that is not what was asked for; its message is the server's sentence. */
export class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

/** `give` is called where the server wants a token, and returns a promise of one. */
export function onToken(give) {
  askForToken = give;
}

const wait = (seconds) => new Promise((done) => setTimeout(done, 1000 * seconds));

async function sentence(answer) {
  try {
    return (await answer.json()).error;
  } catch {
    return `The server answered ${answer.status}.`;
  }
}

/** The answer to a request; waits its turn where the server is busy, and throws `Refused` for any other refusal. */
export async function ask(path, options = {}) {
  for (let left = TRIES; ; left -= 1) {
    const headers = { ...options.headers };
    if (token) headers.Authorization = `Bearer ${token}`;
    let answer;
    try {
      answer = await fetch(path, { ...options, headers });
    } catch {
      throw new Refused(0, "The server does not answer: see whether it still runs.");
    }
    if (answer.ok) return answer;
    const pause = Number(answer.headers.get("Retry-After"));
    if (answer.status === 401) {
      token = await askForToken();
      sessionStorage.setItem("masklab-token", token);
    } else if (pause > 0 && left > 0) {
      await wait(pause * (0.5 + Math.random()));
    } else {
      throw new Refused(answer.status, await sentence(answer));
    }
  }
}
