// What the page suggests, for the model that comes with it. Change both together.

export const DEFAULT_MODEL = "reflect-tiny";

/** A model of this size is fetched without asking, unless the visitor saves data; a larger one waits for a click. */
export const SMALL_BYTES = 50e6;

/** @type {{title: string, text: string, question: string}[]} */
export const EXAMPLES = [
  { title: "Easy", text: "It answers at once.", question: "What is 35 + 43?" },
  {
    title: "Hard",
    text: "It thinks, and checks the risky steps.",
    question:
      "There are 7 bags. There are 4 times as many cups as bags. There are 2 times as many coins as cups. " +
      "The jars are the coins minus the cups. There are 13 drums. The cards are the jars minus the drums. How many cards are there, mod 23?",
  },
  { title: "Wrong at first", text: "It guesses, works it out, and corrects itself.", question: "What is 78 + 65 + 94?" },
];
