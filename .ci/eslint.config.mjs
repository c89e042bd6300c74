// For the modules of the TensorBoard tab; no package.json, since the page has no dependency:
//   npx eslint@10.15.0 -c .ci/eslint.config.mjs lightning_deadunits/tensorboard_plugin/static
const BROWSER = [
  'CSS', 'ImageData', 'MessageChannel', 'MutationObserver', 'OffscreenCanvas', 'ResizeObserver',
  'TextDecoder', 'URLSearchParams', 'document', 'fetch', 'getComputedStyle', 'localStorage',
  'navigator', 'setTimeout', 'window',
];

export default [
  {
    files: ['**/*.js'],
    languageOptions: {
      ecmaVersion: 2023,
      sourceType: 'module',
      globals: Object.fromEntries(BROWSER.map((name) => [name, 'readonly'])),
    },
    rules: {
      eqeqeq: ['error', 'always'],
      'no-shadow': 'error',
      'no-undef': 'error',
      'no-unused-vars': 'error',
      'no-var': 'error',
      'prefer-const': 'error',
    },
  },
];
